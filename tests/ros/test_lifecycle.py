"""The node as a managed node, driven by its lifecycle services as Nav2's manager drives them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from lifecycle_msgs.msg import State, Transition, TransitionEvent
from lifecycle_msgs.srv import ChangeState, GetAvailableStates, GetAvailableTransitions, GetState

from nvila_ros.msg import Answer, Status
from tests.ros.robot import SLOW_NODE, Robot, result_of, running, wait_until

MANUAL = ("-p", "autostart:=false")


class Manager:
    """A lifecycle manager beside the robot."""

    def __init__(self, robot: Robot) -> None:
        self._robot = robot
        self.events: list[TransitionEvent] = []
        robot.node.create_subscription(TransitionEvent, "nvila/transition_event", self.events.append, 10)

    def call(self, kind: Any, name: str, **fields: Any) -> Any:
        client = self._robot.node.create_client(kind, f"nvila/{name}")
        assert client.wait_for_service(45.0)
        return result_of(client.call_async(kind.Request(**fields)))

    def change(self, label: str, number: int = 0) -> bool:
        return bool(self.call(ChangeState, "change_state", transition=Transition(id=number, label=label)).success)

    @property
    def state(self) -> str:
        return str(self.call(GetState, "get_state").current_state.label)

    def transitions(self, name: str = "get_available_transitions") -> list[str]:
        told = self.call(GetAvailableTransitions, name).available_transitions
        return [description.transition.label for description in told]


@pytest.fixture
def manual() -> Iterator[tuple[Robot, Manager]]:
    with running(*MANUAL, "-p", "model:=fake:0.02", state=Status.UNKNOWN) as (robot, camera):
        robot.show(camera, 1)
        yield robot, Manager(robot)


def test_node_that_starts_by_itself_is_active_once_its_model_is_ready() -> None:
    with running() as (robot, _):
        manager = Manager(robot)
        wait_until(lambda: manager.state == "active", "the node is active")

        assert manager.transitions() == ["deactivate", "shutdown"]
        assert robot.fresh_diagnostics()["lifecycle_state"] == "active"


def test_node_answers_only_while_it_is_active_and_says_how_to_get_there(manual: tuple[Robot, Manager]) -> None:
    robot, manager = manual
    assert manager.state == "unconfigured"
    refused = robot.ask("too early")
    assert refused.finish_reason == Answer.REJECTED
    assert "ros2 lifecycle set /nvila configure and ros2 lifecycle set /nvila activate" in refused.error

    assert manager.change("configure")
    assert robot.statuses[-1].state == Status.READY
    assert "ros2 lifecycle set /nvila activate" in robot.ask("still too early").error
    assert manager.change("", Transition.TRANSITION_ACTIVATE)
    answer = robot.ask("now")

    assert (answer.finish_reason, answer.text) == (Answer.STOP, "now")


def test_deactivated_node_cancels_what_is_open_and_keeps_its_model(manual: tuple[Robot, Manager]) -> None:
    robot, manager = manual
    assert manager.change("configure")
    assert manager.change("activate")
    asked = [robot.ask_later("word " * 500, max_tokens=500) for _ in range(2)]
    wait_until(lambda: bool(robot.tokens), "the first answer is on its way")

    assert manager.change("deactivate")
    reasons = {result_of(future).answer.finish_reason for future in asked}
    num_loads = len([status for status in robot.statuses if status.state == Status.READY])
    assert manager.change("activate")

    assert reasons == {Answer.CANCELED}
    assert robot.ask("again").text == "again"
    assert len([status for status in robot.statuses if status.state == Status.READY]) == num_loads


def test_cleaned_up_node_has_no_model_and_loads_one_when_it_is_configured_again(manual: tuple[Robot, Manager]) -> None:
    robot, manager = manual
    for label in ("configure", "activate", "deactivate", "cleanup"):
        assert manager.change(label), label
    assert robot.statuses[-1].state == Status.UNKNOWN
    assert robot.statuses[-1].model == ""

    for label in ("configure", "activate"):
        assert manager.change(label), label

    assert robot.ask("again").text == "again"
    wait_until(lambda: len(manager.events) == 12, "all events have come")
    goals = [event.goal_state.label for event in manager.events]
    assert goals == [
        *("configuring", "inactive", "activating", "active", "deactivating", "inactive", "cleaningup", "unconfigured"),
        *("configuring", "inactive", "activating", "active"),
    ]


def test_transition_that_does_not_exist_fails_and_changes_nothing(manual: tuple[Robot, Manager]) -> None:
    _, manager = manual

    assert not manager.change("activate")
    assert not manager.change("", 99)

    assert manager.state == "unconfigured"
    assert manager.transitions() == ["configure", "shutdown"]
    assert len(manager.transitions("get_transition_graph")) == 7
    states = manager.call(GetAvailableStates, "get_available_states").available_states
    assert State(id=3, label="active") in states


def test_model_that_does_not_load_fails_the_transition_and_not_the_node(tmp_path: Path) -> None:
    with Robot(*MANUAL, "-p", "model:=fake:not-a-number", state=Status.UNKNOWN) as robot:
        manager = Manager(robot)

        assert not manager.change("configure")

        assert manager.state == "unconfigured"
        assert "could not convert string to float" in robot.ask("anyone").error


def test_frames_and_statuses_go_on_while_the_model_is_loaded(tmp_path: Path) -> None:
    name = tmp_path / "may_load"
    with running(*MANUAL, "-p", f"model:={name}", command=SLOW_NODE, state=Status.UNKNOWN) as (robot, camera):
        manager = Manager(robot)
        client = robot.node.create_client(ChangeState, "nvila/change_state")
        assert client.wait_for_service(45.0)
        configured = client.call_async(ChangeState.Request(transition=Transition(label="configure")))
        wait_until(lambda: manager.state == "configuring", "it is loading")

        robot.show(camera, 1, 2, 3)
        received = robot.fresh_diagnostics()["frames_received"]
        name.touch()

        assert received == "3"
        assert result_of(configured).success


def test_shutdown_ends_the_process_in_order(manual: tuple[Robot, Manager]) -> None:
    robot, manager = manual

    assert manager.change("shutdown")

    assert robot.process.wait() == 0, robot.process.log
