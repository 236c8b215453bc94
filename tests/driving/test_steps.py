"""What of an answer is taken for a step, which step it is, and that a step makes its amount."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.driving.decision import objection, read_choice
from nvila_ros.driving.motion import Pose, Space, StepMotion
from nvila_ros.driving.outcomes import Fault, ScoredStep, StepOutcome
from nvila_ros.driving.settings import DriveConfig
from nvila_ros.prompt.navila import ACTIONS, SENTENCES
from nvila_ros.types import NS_PER_S
from tests.driving.test_driver import MS, START_NS, certain


@given(probabilities=st.lists(st.floats(), max_size=12), stamps=st.lists(st.integers(1, 10**12), max_size=3))
def test_what_is_no_answer_about_the_ten_is_refused(probabilities: list[float], stamps: list[int]) -> None:
    found = read_choice("q", SENTENCES, probabilities, stamps, "", 10**12)

    if isinstance(found, ScoredStep):
        assert len(probabilities) == 10
        assert abs(sum(probabilities) - 1) <= 0.011
        assert stamps
    assert isinstance(read_choice("q", SENTENCES[:9], certain(0)[:9], [1], "", 1), Fault)


@pytest.mark.parametrize(
    ("probabilities", "action"),
    [
        ((0.25, *(0.25 / 3,) * 9), 0),  # of equals the first: to stop
        ((0.3, 0, 0, 0, 0.2, 0.25, 0.15, 0, 0.1, 0), 5),  # three wishes to turn left are one
        ((0.1, 0.2, 0.3, 0.1, 0, 0.3, 0, 0, 0, 0), 2),
    ],
)
def test_the_likeliest_kind_is_chosen_and_then_its_likeliest_amount(
    probabilities: tuple[float, ...], action: int
) -> None:
    choice = read_choice("q", SENTENCES, probabilities, [START_NS], "", START_NS)

    assert isinstance(choice, ScoredStep)
    assert choice.action == ACTIONS[action]
    assert choice.probability == probabilities[action]


def test_old_frames_are_refused() -> None:
    choice = read_choice("q", SENTENCES, certain(0), [START_NS], "", START_NS + 2 * NS_PER_S)
    assert isinstance(choice, ScoredStep)
    old = objection(choice, min_probability=0.05, max_age_s=1.0, settled_ns=0)
    before = objection(choice, min_probability=0.05, max_age_s=9.0, settled_ns=START_NS + 1)
    assert old is not None
    assert before is not None
    assert "2.00 s old" in old.text
    assert "before the last step" in before.text


@given(action=st.sampled_from(ACTIONS[1:]), yaw=st.floats(-3.1, 3.1))
def test_a_step_by_odometry_makes_its_amount(action, yaw: float) -> None:  # type: ignore[no-untyped-def]
    config = DriveConfig()
    x = y = 0.0
    motion = StepMotion(action, config, 0, Pose(0.0, 0.0, yaw))
    start = yaw
    for ms in range(0, 20_000, 20):
        found = motion.velocity(ms * MS, Pose(x, y, yaw), Space())
        if isinstance(found, StepOutcome):
            break
        x, y = x + found[0] * 0.02 * math.cos(yaw), y + found[0] * 0.02 * math.sin(yaw)
        yaw = math.remainder(yaw + found[1] * 0.02, 2 * math.pi)

    assert found is StepOutcome.DONE
    turned = math.remainder(yaw - start, 2 * math.pi)
    wanted = {"left": action.amount, "right": -action.amount}.get(action.kind, 0.0)
    assert abs(turned - wanted) < math.radians(2.5)
    assert abs(math.hypot(x, y) - (action.amount if action.kind == "forward" else 0)) < 0.02
