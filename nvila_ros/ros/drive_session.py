"""Whoever sends a simulated robot on its way: it sets the task, sends the goal, and keeps what is published."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import rclpy
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Bool, String

from nvila_ros.action import Navigate
from nvila_ros.errors import ServerTimeoutError
from nvila_ros.msg import Step
from nvila_ros.ros.client import NvilaClient
from nvila_ros.ros.messages import TRANSIENT_LOCAL

TURN_S = 0.02
ACCEPTANCE_S = 3.0
"""How long a goal's acceptance may take before it is sent again: a server that was killed is found for some time."""
LOCK_HZ = 20.0
_KINDS = {
    bool: ("bool_value", ParameterType.PARAMETER_BOOL),
    int: ("integer_value", ParameterType.PARAMETER_INTEGER),
    str: ("string_value", ParameterType.PARAMETER_STRING),
}


@dataclass(slots=True)
class DriveRecord:
    """A drive as it was reported.

    Attributes:
        track: of the robot, x, y and yaw, as the simulation publishes it.
        steps: each when it began, or was not taken; picture (H, W, 3) uint8 RGB.
        truth: of the simulation when the drive had ended.
    """

    track: list[tuple[float, float, float]] = field(default_factory=list)
    steps: list[tuple[Step, np.ndarray | None]] = field(default_factory=list)
    result: Any = None
    truth: dict[str, Any] = field(default_factory=dict)


class DriveSession:
    """Drives a simulated robot and holds its lock open; use it in a `with`.

    Args:
        check: called many times a second; whatever it raises ends the wait.
        timeout_s: how long anything may take but a drive.
    """

    def __init__(self, check: Callable[[], None], timeout_s: float = 60.0) -> None:
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._check, self._timeout_s = check, timeout_s
        self.node = rclpy.create_node("nvila_drive_session")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._client = NvilaClient(self.node, "nvila", timeout_s=timeout_s, discovery_s=timeout_s)
        self._goals = ActionClient(self.node, Navigate, "nvila_drive/navigate")
        self._lock = self.node.create_publisher(Bool, "lock", 1)
        self.is_unlocking = True
        self.truth: dict[str, Any] = {}
        self._record = DriveRecord()
        self.node.create_subscription(String, "nvila_sim/truth", self._on_truth, TRANSIENT_LOCAL)
        self.node.create_subscription(Step, "nvila_drive/step", self._on_step, 64)
        self.node.create_timer(1 / LOCK_HZ, self._unlock)

    def __enter__(self) -> DriveSession:
        return self

    def __exit__(self, *args: object) -> None:
        self._client.close()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown()

    def wait_until_ready(self) -> None:
        """Wait for the model, the drive and the simulation.

        Raises:
            NvilaError: one of them did not come.
        """
        ready = self._client.wait_until_ready(self._timeout_s)
        self.wait(ready.done, "the model")
        ready.result()
        self.wait(lambda: self._goals.server_is_ready() and bool(self.truth), "the drive and the simulation")

    def set(self, node: str, **values: bool | int | str) -> None:
        """Set parameters of a node.

        Raises:
            ServerTimeoutError: it did not answer.
        """
        parameters = [
            Parameter(name=name, value=ParameterValue(**{"type": _KINDS[type(v)][1], _KINDS[type(v)][0]: v}))
            for name, v in values.items()
        ]
        client = self.node.create_client(SetParameters, f"{node}/set_parameters")
        self.wait(client.service_is_ready, f"parameters of {node}")
        future = client.call_async(SetParameters.Request(parameters=parameters))
        self.wait(future.done, f"parameters of {node}")
        self.node.destroy_client(client)

    def begin(self, task: int) -> None:
        """Put the robot at the start of a task."""
        self.set("nvila_sim", task=task, fault="none")
        self.wait(lambda: self.truth.get("task") == task and self.truth["traveled_m"] == 0.0, "the robot at its start")

    def send(self, instruction: str, **limits: float) -> Any:
        """Send a goal and return its handle once it is accepted.

        Raises:
            ServerTimeoutError: it is not accepted.
        """
        self._record = DriveRecord()
        end_s = time.monotonic() + self._timeout_s
        while time.monotonic() < end_s:
            sent = self._goals.send_goal_async(Navigate.Goal(instruction=instruction, **limits))
            with contextlib.suppress(ServerTimeoutError):
                self.wait(sent.done, "the goal's acceptance", ACCEPTANCE_S)
                if sent.result().accepted:
                    return sent.result()
        raise ServerTimeoutError("the drive node follows another goal, and does not end it, or is gone")

    def finish(self, handle: Any, timeout_s: float) -> DriveRecord:
        """Wait for the end of a drive, and until the robot stands."""
        ended = handle.get_result_async()
        self.wait(ended.done, "the end of the drive", timeout_s)
        record, record.result = self._record, ended.result().result
        self.wait(lambda: self.truth["speed"] == self.truth["turn"] == 0.0, "the robot to stand")
        self.rest(0.3)  # the truth of after
        record.truth = dict(self.truth)
        self._record = DriveRecord()  # the way to the start of the next task is not this one's
        return record

    def wait(self, is_done: Callable[[], bool], what: str, timeout_s: float | None = None) -> None:
        """Turn until something is true.

        Raises:
            ServerTimeoutError: it did not become true in time.
        """
        limit_s = timeout_s or self._timeout_s
        end_s = time.monotonic() + limit_s
        while not is_done():
            if time.monotonic() > end_s:
                raise ServerTimeoutError(f"{what} did not come within {limit_s:g} s")
            self.turn()

    def rest(self, duration_s: float) -> None:
        """Only receive messages, for this long."""
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            self.turn()

    def turn(self) -> None:
        """Receive what has come."""
        self._check()
        self._executor.spin_once(timeout_sec=TURN_S)

    def _unlock(self) -> None:
        if self.is_unlocking:
            self._lock.publish(Bool(data=False))

    def _on_truth(self, message: String) -> None:
        self.truth = json.loads(message.data)
        self._record.track.append((self.truth["x"], self.truth["y"], self.truth["yaw"]))

    def _on_step(self, message: Step) -> None:
        if message.outcome not in (Step.BEGUN, Step.NOT_TAKEN):
            return
        picture = None
        if message.picture.data:
            bgr = cv2.imdecode(np.frombuffer(message.picture.data, np.uint8), cv2.IMREAD_COLOR)
            picture = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        self._record.steps.append((message, picture))
