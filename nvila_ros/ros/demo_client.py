"""The demo's own node: it asks by the client, and sees what the cameras publish and what the node counts."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from nvila_ros.errors import ServerTimeoutError
from nvila_ros.ros.client import NvilaClient
from nvila_ros.ros.messages import stamp_to_ns
from nvila_ros.types import Answer

T = TypeVar("T")
TURN_S = 0.02


class DemoClient:
    """Asks a node, and watches over other processes while it waits; use it in a `with`.

    Args:
        node: name of the node that is asked.
        check: called many times a second; whatever it raises ends the wait.
        start_s: how long the node may take to start.
        answer_s: how long an answer may take.
    """

    def __init__(self, node: str, check: Callable[[], None], *, start_s: float, answer_s: float) -> None:
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._name, self._check, self._start_s, self._answer_s = node, check, start_s, answer_s
        self._node = rclpy.create_node("nvila_demo")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._client = NvilaClient(self._node, node, timeout_s=answer_s, discovery_s=start_s)
        self._counts: list[dict[str, int]] = []
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 1)

    def __enter__(self) -> DemoClient:
        return self

    def __exit__(self, *args: object) -> None:
        self._client.close()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def now_ns(self) -> int:
        """Return the ROS clock."""
        return int(self._node.get_clock().now().nanoseconds)

    def rest(self, duration_s: float) -> None:
        """Only receive messages, for this long."""
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            self._turn()

    def wait_for_node(self) -> None:
        """Wait until the node's model answers.

        Raises:
            NvilaError: it does not in time, or will not.
        """

        async def work() -> None:
            await self._client.wait_until_ready(self._start_s)

        self._run(work)

    def wait_for_frame(self, timeout_s: float) -> int:
        """Wait for an image and return its stamp, ns.

        Raises:
            ServerTimeoutError: none came in time.
        """
        stamps: list[int] = []
        qos = QoSProfile(depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)
        images = self._node.create_subscription(
            Image, "image", lambda image: stamps.append(stamp_to_ns(image.header.stamp)), qos
        )
        self._wait(lambda: bool(stamps), timeout_s, "the camera's first frame")
        self._node.destroy_subscription(images)
        return stamps[0]

    def wait_for_counts(self) -> dict[str, int]:
        """Wait for the node's next diagnostics and return its counts of frames.

        Raises:
            ServerTimeoutError: none came in time.
        """
        self._counts.clear()
        self._wait(lambda: bool(self._counts), self._answer_s, "the node's diagnostics")
        return self._counts[-1]

    def ask(self, question: str, on_piece: Callable[[str], None] | None, **fields: Any) -> Answer:
        """Ask by the service, or where pieces are wanted by the action; fields as of `NvilaClient.ask`.

        Raises:
            NvilaError: why there is no answer.
        """

        async def work() -> Answer:
            if on_piece is None:
                return await self._client.ask(question, **fields)
            stream = self._client.ask_video(question, **fields)
            async for piece in stream:
                on_piece(piece)
            return await stream.answer

        return self._run(work)

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        task: Any = self._executor.create_task(work)
        while not task.done():
            self._turn()  # raises what the task does
        result: T = task.result()
        return result

    def _wait(self, is_done: Callable[[], bool], timeout_s: float, what: str) -> None:
        end_s = time.monotonic() + timeout_s
        while not is_done():
            if time.monotonic() > end_s:
                raise ServerTimeoutError(f"{what} did not come within {timeout_s:g} s")
            self._turn()

    def _turn(self) -> None:
        self._check()
        self._executor.spin_once(timeout_sec=TURN_S)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == self._name:
                self._counts[:] = [{v.key: int(v.value) for v in status.values if v.key.startswith("frames_")}]
