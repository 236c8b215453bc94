"""A simulated robot is driven over the real middleware, and whatever fails amid a step, it stands and says why.

How far it goes on is measured in metres of the simulation: no assertion is about time.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2")

import rclpy
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from std_msgs.msg import Bool, String

from nvila_ros.action import Navigate
from nvila_ros.msg import Event, Step
from nvila_ros.ros.messages import TRANSIENT_LOCAL
from nvila_ros.world.rooms.instructions import eval_task
from tests.ros.open_task import open_task
from tests.ros.robot import WAIT_S, NodeProcess, wait_until

pytestmark = pytest.mark.ros

ANSWERS = (sys.executable, str(Path(__file__).with_name("scripted_answers.py")))
SIM = (sys.executable, "-m", "nvila_ros.ros.sim")
DRIVE = (sys.executable, "-m", "nvila_ros.ros.drive")
# A busy machine delays messages; what is measured is the way that the robot still makes.
PATIENT = ("-p", "watch_s:=1.0", "-p", "lock_timeout_s:=1.0", "-p", "frozen_s:=0.5", "-p", "max_age_s:=5.0")
MOST_M = 0.6
"""With the patient limits above: 0.3 m/s for a second, and the stopping."""
AHEAD, STOP = 3, 0


class Course:
    """The three processes, an operator who keeps the lock open, and whoever sends goals."""

    def __init__(self) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node("course", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.truth: dict[str, Any] = {}
        self.steps: list[Step] = []
        self.is_unlocking = True
        self._lock = self.node.create_publisher(Bool, "lock", 1)
        self.events = self.node.create_publisher(Event, "nvila/event", 16)
        self.node.create_subscription(String, "nvila_sim/truth", self._on_truth, TRANSIENT_LOCAL)
        self.node.create_subscription(Step, "nvila_drive/step", self.steps.append, 64)
        self.node.create_timer(0.05, lambda: self.is_unlocking and self._lock.publish(Bool(data=False)))
        self.goals = ActionClient(self.node, Navigate, "nvila_drive/navigate")
        self._thread = threading.Thread(target=self._executor.spin)
        self._thread.start()
        self.sim = NodeProcess("-p", f"task:={open_task()}", "-p", "rate_hz:=10.0", command=SIM)
        self.answers = self.drive = None
        self.start_answers()
        self.start_drive()

    def start_answers(self) -> None:
        self.answers = NodeProcess("-p", f"script:=[{AHEAD}]", command=ANSWERS)

    def start_drive(self) -> None:
        drives = ("armed:=true", "lock_topic:=lock", "interrupts:=[person]", "answer_s:=20.0")
        parameters = [word for value in drives for word in ("-p", value)]
        self.drive = NodeProcess(*parameters, *PATIENT, command=DRIVE)
        self.drive.wait_for_log("drives by")  # one that was killed is among those found for some time
        assert self.goals.wait_for_server(WAIT_S), self.drive.log

    def warm_up(self) -> None:
        """Wait until the drive hears the camera, the scan, the lock and the node that answers."""
        self.begin([STOP])
        ended: list[Navigate.Result] = []

        def stops() -> bool:
            ended.append(self.result(self.send()))
            return bool(ended[-1].end_reason == Navigate.Result.STOPPED)

        wait_until(stops, lambda: f"the drive hears all; it ended {ended[-1]}\n{self.drive.log}")

    def close(self) -> None:
        with contextlib.ExitStack() as last:  # whatever fails of it
            last.callback(rclpy.shutdown, context=self._context)
            last.callback(self.node.destroy_node)
            last.callback(self._thread.join)
            last.callback(self._executor.shutdown)
            for child in (self.sim, self.answers, self.drive):
                if child is not None and child.is_running:
                    last.callback(child.stop)

    def _on_truth(self, message: String) -> None:
        self.truth = json.loads(message.data)

    def set(self, node: str, **values: Any) -> None:
        kinds = {
            bool: ("bool_value", ParameterType.PARAMETER_BOOL),
            str: ("string_value", ParameterType.PARAMETER_STRING),
        }
        kinds |= {int: ("integer_value", ParameterType.PARAMETER_INTEGER)}
        kinds |= {list: ("integer_array_value", ParameterType.PARAMETER_INTEGER_ARRAY)}
        parameters = [
            Parameter(name=n, value=ParameterValue(**{"type": kinds[type(v)][1], kinds[type(v)][0]: v}))
            for n, v in values.items()
        ]
        client = self.node.create_client(SetParameters, f"{node}/set_parameters")
        assert client.wait_for_service(WAIT_S)
        asked: list[Any] = []

        def is_done() -> bool:
            """Ask again every second: a server that was killed is among those found for some time."""
            if len(asked) * 100 <= waited[0]:
                asked.append(client.call_async(SetParameters.Request(parameters=parameters)))
            waited[0] += 1
            return any(future.done() for future in asked)

        waited = [0]
        wait_until(is_done, f"{node} takes {values}")
        (done,) = [future for future in asked if future.done()][:1]
        assert all(result.successful for result in done.result().results), done.result()

    def begin(self, script: list[int]) -> None:
        """Put the robot at its start, and let the model choose anew."""
        self.set("nvila_sim", task=open_task(), fault="none")
        self.set("nvila", script=script)
        start = eval_task(open_task())
        wait_until(
            lambda: math.dist((self.truth.get("x", 0), self.truth.get("y", 0)), (start.x, start.y)) < 1e-6, "it is back"
        )

    def send(self, **goal: Any) -> Any:
        """Send a goal and return its handle once it is accepted; one that comes too early is sent again."""

        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            sent = self.goals.send_goal_async(Navigate.Goal(instruction="Go to the red ball.", **goal))
            # A server that was killed is among those found for some time, and answers nothing.
            for _ in range(300):
                if sent.done():
                    break
                time.sleep(0.01)
            if sent.done() and sent.result().accepted:
                return sent.result()
        raise AssertionError(self.drive.log)

    def result(self, handle: Any) -> Navigate.Result:
        future = handle.get_result_async()
        wait_until(future.done, f"the goal ends:\n{self.drive.log}")
        return future.result().result

    def drive_off(self) -> Any:
        """Send a goal that goes ahead for ever, and return its handle once the robot moves."""
        self.warm_up()
        self.begin([AHEAD])
        handle = self.send()
        wait_until(lambda: self.truth["speed"] > 0.2, f"the robot moves:\n{self.drive.log}")
        return handle

    def stands(self) -> float:
        """Wait until the robot stands, and return its way, m."""
        wait_until(lambda: self.truth["speed"] == self.truth["turn"] == 0.0, "the robot stands")
        return float(self.truth["traveled_m"])


@pytest.fixture(scope="module")
def course() -> Iterator[Course]:
    course = Course()
    try:
        yield course
    finally:
        course.close()


def test_a_drive_is_told_step_by_step_and_ends_where_the_model_says_stop(course: Course) -> None:
    course.warm_up()
    course.begin([1, 4, 7, STOP])
    course.steps.clear()
    handle = course.send()
    result = course.result(handle)
    wait_until(lambda: len(course.steps) == 7, "all steps are told")

    assert (result.end_reason, result.end_reason_name) == (Navigate.Result.STOPPED, "STOPPED")
    assert result.num_steps == 3
    assert abs(result.traveled_m - 0.25) < 0.05
    assert [step.outcome for step in course.steps] == [Step.BEGUN, Step.DONE] * 3 + [Step.NOT_TAKEN]
    begun, done = course.steps[:2]
    assert begun.action == "The next action is move forward 25 cm."
    assert begun.picture.format == "jpeg"
    assert bytes(begun.picture.data[:2]) == b"\xff\xd8"
    assert not done.picture.data
    assert abs(done.moved - 0.25) < 0.05
    assert len(begun.probabilities) == len(begun.choices) == 10
    assert begun.has_pose
    assert 'task is: "Go to the red ball."' in begun.question
    assert abs(course.truth["yaw"] - eval_task(open_task()).yaw) < math.radians(5)
    assert course.truth["collisions"] == 0


@pytest.mark.parametrize(
    ("fault", "reason"), [("frozen", "FROZEN"), ("lost", "STALE"), ("delayed", "STALE"), ("stamps", "CLOCK_JUMP")]
)
def test_a_camera_that_fails_stands_the_robot(course: Course, fault: str, reason: str) -> None:
    handle = course.drive_off()
    course.set("nvila_sim", fault=fault)
    before_m = course.truth["traveled_m"]

    assert course.result(handle).end_reason_name == reason
    assert course.stands() - before_m < MOST_M


@pytest.mark.parametrize("how", ["cancel", "disarm", "lock", "standing"])
def test_an_order_to_stop_stands_the_robot(course: Course, how: str) -> None:
    handle = course.drive_off()
    before_m = course.truth["traveled_m"]
    if how == "cancel":
        handle.cancel_goal_async()
    elif how == "disarm":
        course.set("nvila_drive", armed=False)
    elif how == "lock":
        course.is_unlocking = False
    else:
        course.events.publish(Event(name="person", phase=Event.BEGIN))
    result = course.result(handle)
    way_m = course.stands() - before_m
    course.set("nvila_drive", armed=True)
    course.is_unlocking = True

    wanted = {"cancel": "CANCELED", "standing": "INTERRUPTED"}.get(how, "DISARMED")
    assert result.end_reason_name == wanted
    assert result.last.outcome == Step.INTERRUPTED
    assert way_m < MOST_M


def test_a_disarmed_robot_is_not_moved(course: Course) -> None:
    course.warm_up()
    course.begin([AHEAD])
    course.set("nvila_drive", armed=False)
    result = course.result(course.send())
    course.set("nvila_drive", armed=True)

    assert result.end_reason_name == "DISARMED"
    assert course.truth["traveled_m"] == 0


def test_a_model_that_is_killed_stands_the_robot(course: Course) -> None:
    handle = course.drive_off()
    before_m = course.truth["traveled_m"]
    course.answers.stop(signal.SIGKILL)
    result = course.result(handle)
    way_m = course.stands() - before_m
    course.start_answers()

    assert result.end_reason_name == "NO_ANSWER"
    assert way_m < MOST_M


def test_a_drive_that_is_killed_stands_the_robot_and_one_that_ends_says_so(course: Course) -> None:
    course.drive_off()
    before_m = course.truth["traveled_m"]
    course.drive.stop(signal.SIGKILL)
    assert course.stands() - before_m < MOST_M
    course.start_drive()
    handle = course.drive_off()
    before_m = course.truth["traveled_m"]
    future = handle.get_result_async()
    assert course.drive.stop(signal.SIGTERM) == 0, course.drive.log
    assert course.stands() - before_m < MOST_M
    wait_until(future.done, "the result has left")
    assert future.result().result.end_reason_name == "SHUTDOWN"
    course.start_drive()
