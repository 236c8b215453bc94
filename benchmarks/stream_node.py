"""What the node itself costs, with a model that does nothing: from the end of its work to a subscriber, and for frames.

The real node and the real camera run as processes of their own over Fast DDS, as on a robot.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from std_msgs.msg import String

from benchmarks.process_usage import cpu_s
from nvila_ros.msg import Answer
from nvila_ros.request import ModelInfo, Request
from nvila_ros.ros import node
from nvila_ros.ros.camera_publisher import ros_args
from nvila_ros.ros.demo_client import DemoClient
from nvila_ros.tools.demo.demo import ANSWER_S, CAMERA_S, NODE, START_S
from nvila_ros.tools.demo.graph import ros_environment
from nvila_ros.tools.demo.subprocesses import Children
from nvila_ros.types import FinishReason, FrameRef, Query
from nvila_ros.video.deferred import DeferredFrame

WIDTH, HEIGHT, RATE_HZ = 1280, 720, 30.0
NUM_ANSWERS = 200
ASK_EVERY_S = 0.02


@dataclass(frozen=True, slots=True)
class NodeCost:
    """What the node costs.

    Attributes:
        overhead_p95_s: from the end of the model's work to a subscriber in another process, 95th percentile.
        core_share: of one core, for taking frames in while nothing is asked.
    """

    overhead_p95_s: float
    core_share: float


class Clockwatcher:
    """A model that answers at once with the steady clock's time."""

    info = ModelInfo("clock", "none", "none")
    frames_per_group = 1

    def warm_up(self) -> None:
        """Need nothing."""

    def has_conversation(self, query: Query) -> bool:
        """Hold no conversations."""
        return False

    def prefetch(self, frame: DeferredFrame, *, is_alone: bool, should_stop: Callable[[], bool]) -> None:
        """Encode nothing."""

    def counters(self) -> dict[str, int]:
        """Count nothing."""
        return {}

    def remark(self) -> str:
        """Say nothing of its answers."""
        return ""

    def answer_all(self, requests: Sequence[Request], frames: Sequence[DeferredFrame]) -> None:
        """Answer each with the time."""
        refs = tuple(FrameRef(stamp_ns=f.stamp_ns, camera=f.camera) for f in frames)
        for request in requests:
            request.begin(self.info, refs, time.monotonic_ns)
            request.emit(str(time.monotonic_ns()))
            request.end(FinishReason.STOP)


def main() -> int:
    """Run the real node with this model; returns the exit code."""
    return node.main(load=lambda *args, **options: Clockwatcher())  # type: ignore[arg-type, return-value]


def measure_node(num_seconds: int) -> NodeCost:
    """Run the node beside a camera for so many seconds, then ask it."""
    environ = ros_environment()
    os.environ.update(environ)
    with tempfile.TemporaryDirectory() as folder, Children(Path(folder), environ) as children:
        child = children.start("node", "benchmarks.stream_node", ros_args({}))
        with DemoClient(NODE, children.check, start_s=START_S, answer_s=ANSWER_S) as client:
            client.wait_for_node()
            camera = {"world": 0, "width": WIDTH, "height": HEIGHT, "rate_hz": RATE_HZ}
            children.start("camera", "nvila_ros.ros.camera_publisher", ros_args(camera))
            client.wait_for_frame(CAMERA_S)
            client.rest(2.0)
            start_s, start_cpu_s = time.monotonic(), cpu_s(child.process.pid)
            time.sleep(num_seconds)
            core_share = (cpu_s(child.process.pid) - start_cpu_s) / (time.monotonic() - start_s)
            return NodeCost(float(np.percentile(measure_overhead(), 95)), core_share)


def measure_overhead() -> list[float]:
    """Ask over a topic, and return the seconds from each answer's birth to its arrival."""
    asker = rclpy.create_node("stream_asker")
    seconds: list[float] = []
    asker.create_subscription(
        Answer, "/nvila/answer", lambda answer: seconds.append((time.monotonic_ns() - int(answer.text)) / 1e9), 16
    )
    questions = asker.create_publisher(String, "/nvila/question", 16)
    executor = SingleThreadedExecutor()
    executor.add_node(asker)
    end_s = time.monotonic() + 60.0
    while len(seconds) < NUM_ANSWERS and time.monotonic() < end_s:
        questions.publish(String(data="What time is it?"))
        next_s = time.monotonic() + ASK_EVERY_S
        while (left_s := next_s - time.monotonic()) > 0:
            executor.spin_once(timeout_sec=left_s)
    executor.shutdown()
    asker.destroy_node()
    assert len(seconds) >= NUM_ANSWERS, f"only {len(seconds)} answers came"
    return seconds
