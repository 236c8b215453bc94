"""Goals of a drive and of Nav2's behaviours, whose messages differ by distribution, and how their ends are read."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

from action_msgs.msg import GoalStatus

from nvila_ros.action import Navigate
from nvila_ros.driving.outcomes import DriveEnd, DriveStop, ScoredStep, StepOutcome, StepReport
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.errors import QueryError
from nvila_ros.msg import Step
from nvila_ros.prompt.navila import ACTIONS
from nvila_ros.ros.drive_behaviors import read_result
from nvila_ros.ros.drive_messages import behavior_goal, goal_from_message, result_message, step_message
from nvila_ros.ros.velocities import is_stamped


def goal_type(*fields: str) -> Any:
    """A goal with these fields, as the message of a distribution has them."""

    def make() -> SimpleNamespace:
        goal = SimpleNamespace(time_allowance=SimpleNamespace(sec=0, nanosec=0))
        for field in fields:
            setattr(goal, field, SimpleNamespace(x=0.0, y=0.0, z=0.0) if field == "target" else 0.0)
        return goal

    return make


DRIVE_HUMBLE, DRIVE_KILTED = ("target", "speed"), ("target", "speed", "disable_collision_checks")
SPIN_HUMBLE, SPIN_KILTED = ("target_yaw",), ("target_yaw", "disable_collision_checks")


@pytest.mark.parametrize("fields", [DRIVE_HUMBLE, DRIVE_KILTED, SPIN_HUMBLE, SPIN_KILTED])
def test_a_behaviors_goal_has_a_time_and_keeps_the_collision_checks(fields: tuple[str, ...]) -> None:
    goal = behavior_goal(goal_type(*fields), 0.75, -0.5, 0.3, 7.25)

    assert (goal.time_allowance.sec, goal.time_allowance.nanosec) == (7, 250_000_000)
    assert getattr(goal, "disable_collision_checks", False) is False
    if "target" in fields:
        assert (goal.target.x, goal.target.y, goal.target.z, goal.speed) == (0.75, 0.0, 0.0, 0.3)
    else:
        assert goal.target_yaw == -0.5


class Jazzy:
    NONE, UNKNOWN, TIMEOUT, TF_ERROR, COLLISION_AHEAD = 0, 720, 721, 722, 723


class JazzyBackUp:
    """Another order of the same names."""

    NONE, UNKNOWN, TIMEOUT, TF_ERROR, INVALID_INPUT, COLLISION_AHEAD = 0, 710, 711, 712, 713, 714


@pytest.mark.parametrize(
    ("kind", "code", "outcome"),
    [
        (Jazzy, 723, StepOutcome.BLOCKED),
        (JazzyBackUp, 714, StepOutcome.BLOCKED),
        (Jazzy, 721, StepOutcome.TIMED_OUT),
        (Jazzy, 722, StepOutcome.FAILED),
        (JazzyBackUp, 713, StepOutcome.FAILED),
        (Jazzy, 9, StepOutcome.FAILED),
    ],
)
def test_an_error_is_read_by_its_name(kind: Any, code: int, outcome: StepOutcome) -> None:
    found, text = read_result(GoalStatus.STATUS_ABORTED, SimpleNamespace(error_code=code, error_msg="so"), kind)

    assert found is outcome
    assert text.startswith("Nav2: ")


def test_success_and_humble_need_no_code() -> None:
    assert read_result(GoalStatus.STATUS_SUCCEEDED, SimpleNamespace(), Jazzy) == (StepOutcome.DONE, "")
    assert read_result(GoalStatus.STATUS_ABORTED, SimpleNamespace(), Jazzy)[0] is StepOutcome.BLOCKED


def test_a_goals_limits_are_never_laxer_than_the_parameters() -> None:
    config = DriveConfig()
    plain = goal_from_message(Navigate.Goal(instruction=" Go. "), config)
    lax = goal_from_message(
        Navigate.Goal(instruction="Go.", max_steps=900, max_s=9000.0, max_m=900.0, min_probability=0.1), config
    )
    strict = goal_from_message(Navigate.Goal(instruction="Go.", max_steps=2, max_s=3.0, max_m=1.0), config)

    assert plain.instruction == "Go."
    assert plain == lax
    assert (plain.max_steps, plain.max_s, plain.max_m, plain.min_probability) == (60, 180.0, 20.0, 0.15)
    assert (strict.max_steps, strict.max_s, strict.max_m) == (2, 3.0, 1.0)


@pytest.mark.parametrize(
    "fields", [{"instruction": " "}, {"max_s": -1.0}, {"max_m": math.nan}, {"min_probability": 1.5}]
)
def test_a_goal_that_breaks_a_rule_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(QueryError, match="must"):
        goal_from_message(Navigate.Goal(**{"instruction": "Go.", **fields}), DriveConfig())


def test_outcomes_and_reasons_are_those_of_the_messages() -> None:
    assert all(getattr(Step, outcome.name) == outcome for outcome in StepOutcome)
    assert all(getattr(Navigate.Result, reason.name) == reason for reason in DriveStop)


def test_a_step_and_a_result_say_what_was_chosen() -> None:
    choice = ScoredStep(ACTIONS[5], 0.9, "q", tuple([0.01] * 5 + [0.9] + [0.01] * 4), (10**9, 2 * 10**9), "id", 0.25)
    step = StepReport(4, StepOutcome.DONE, choice, "", 3 * 10**9, 5 * 10**9, 0.52)
    message = step_message(step, "ab", "Go.", None, None)
    result = result_message(DriveEnd(DriveStop.UNSURE, "why", 5, 1.5, 20.0, step), "ab", "Go.", None)

    assert (message.kind, message.action) == (Step.LEFT, "The next action is turn left 30 degree.")
    assert math.isclose(message.amount, math.radians(30), abs_tol=1e-6)
    assert (message.header.stamp.sec, len(message.stamps), message.end.sec) == (2, 2, 5)
    assert not message.has_pose
    assert (result.end_reason_name, result.error, result.last.index) == ("UNSURE", "why", 4)


def test_velocities_have_stamps_as_the_distributions_nav2_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    for distro, wanted in (("humble", False), ("jazzy", False), ("kilted", True), ("lyrical", True)):
        monkeypatch.setenv("ROS_DISTRO", distro)
        assert is_stamped("auto") is wanted
    assert is_stamped("true")
    assert not is_stamped("false")
