"""A tree of py_trees asks and drives without blocking, and cancels what it leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")
pytest.importorskip("py_trees", reason="needs nvila_ros[py_trees]")

import rclpy
from py_trees.common import Status
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node

from nvila_ros.action import Navigate
from nvila_ros.errors import QueryError
from nvila_ros.msg import Answer
from nvila_ros.ros.trees import IsAnswered, NavigateByInstruction
from nvila_ros.srv import Ask
from tests.ros.robot import wait_until


class Servers(Node):
    """Says yes with 0.8, and drives until it is told how to end."""

    def __init__(self, context: rclpy.Context) -> None:
        super().__init__("servers", context=context)
        group = ReentrantCallbackGroup()
        self.end, self.reason, self.is_canceled = threading.Event(), Navigate.Result.STOPPED, False
        self.create_service(Ask, "nvila/ask", self._answer, callback_group=group)
        self.server = ActionServer(
            self,
            Navigate,
            "nvila_drive/navigate",
            self._drive,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            callback_group=group,
        )

    def _answer(self, request: Ask.Request, response: Ask.Response) -> Ask.Response:
        probabilities = [0.8, 0.2] if list(request.choices) == ["yes", "no"] else []
        response.answer = Answer(
            finish_reason=Answer.STOP, text="yes", choices=request.choices, probabilities=probabilities
        )
        return response

    def _drive(self, goal) -> Navigate.Result:  # type: ignore[no-untyped-def]
        while not self.end.wait(0.01):
            if goal.is_cancel_requested:
                self.is_canceled = True
                goal.canceled()
                return Navigate.Result(end_reason=Navigate.Result.CANCELED, end_reason_name="CANCELED")
        goal.succeed()
        return Navigate.Result(end_reason=self.reason, end_reason_name="X")


@pytest.fixture
def servers() -> Iterator[Servers]:
    context = rclpy.Context()
    rclpy.init(context=context)
    node = Servers(context)
    executor = MultiThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin)
    thread.start()
    yield node
    node.end.set()
    executor.shutdown()
    thread.join()
    node.server.destroy()
    node.destroy_node()
    rclpy.shutdown(context=context)


def tick_until_done(behaviour) -> Status:  # type: ignore[no-untyped-def]
    def is_done() -> bool:
        behaviour.tick_once()
        return behaviour.status is not Status.RUNNING

    wait_until(is_done, f"{behaviour.name} ends")
    return behaviour.status


@pytest.mark.parametrize(("least", "status"), [(0.7, Status.SUCCESS), (0.9, Status.FAILURE)])
def test_a_condition_holds_where_the_answer_is_likely_enough(servers: Servers, least: float, status: Status) -> None:
    condition = IsAnswered("door", "Is the door open?", min_probability=least)
    condition.setup(node=servers)

    assert tick_until_done(condition) is status
    assert "yes: 0.800" in condition.feedback_message
    condition.shutdown()


def test_a_condition_expects_one_of_its_choices() -> None:
    with pytest.raises(QueryError, match="must be one of the choices"):
        IsAnswered("door", "Is the door open?", expected="open")


@pytest.mark.parametrize(
    ("reason", "status"), [(Navigate.Result.STOPPED, Status.SUCCESS), (Navigate.Result.UNSURE, Status.FAILURE)]
)
def test_a_drive_succeeds_where_the_model_says_that_it_arrived(servers: Servers, reason: int, status: Status) -> None:
    servers.reason = reason
    servers.end.set()
    drive = NavigateByInstruction("go", "Go to the red ball.", max_steps=3)
    drive.setup(node=servers)

    assert tick_until_done(drive) is status
    assert drive.result is not None
    drive.shutdown()


def test_a_drive_that_is_left_is_cancelled(servers: Servers) -> None:
    drive = NavigateByInstruction("go", "Go to the red ball.")
    drive.setup(node=servers)

    def is_sent() -> bool:
        drive.tick_once()
        return drive._ended is not None

    wait_until(is_sent, "the goal is accepted")
    drive.stop(Status.INVALID)

    wait_until(lambda: servers.is_canceled, "the drive is cancelled")
    drive.shutdown()
