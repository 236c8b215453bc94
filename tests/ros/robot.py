"""A node in its own process, and beside it a camera and a client on the real middleware."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

from nvila_ros.action import AskVideo
from nvila_ros.msg import Answer, AnswerToken, Status
from nvila_ros.ros.messages import TRANSIENT_LOCAL
from nvila_ros.srv import Ask

ROOT = Path(__file__).parents[2]
FAKE_NODE = (sys.executable, str(Path(__file__).with_name("fake_node.py")))
SLOW_NODE = (sys.executable, str(Path(__file__).with_name("slow_node.py")))
REAL_NODE = (sys.executable, "-m", "nvila_ros.ros.node")
WAIT_S = 45.0  # generous: it is only waited out where something is broken
PACE_S = 0.05  # between frames: a burst would overrun the five that wait for the node
NS_PER_S = 1_000_000_000


def own_lines(stderr: str) -> list[str]:
    """The lines on stderr but for those of ROS itself.

    Fast DDS finds what killed processes left in shared memory; Jazzy's rcl calls ROS_LOCALHOST_ONLY deprecated.
    """
    return [line for line in stderr.splitlines() if "RTPS_" not in line and " [rcl]: " not in line]


class NodeProcess:
    """The node as a child process; its log is kept."""

    def __init__(self, *arguments: str, command: tuple[str, ...] = FAKE_NODE) -> None:
        self._process = subprocess.Popen(
            [*command, "--ros-args", *arguments],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        """What the node has logged so far."""
        return "".join(self._lines)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log, f"{text!r} in the log:\n{self.log}")

    def send(self, number: int) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def stop(self, number: int = signal.SIGINT) -> int:
        """Send a signal and return the exit code."""
        self.send(number)
        return self.wait()

    def wait(self) -> int:
        try:
            code = self._process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        self._reader.join(WAIT_S)
        return code

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            self._lines.extend(iter(stream.readline, ""))


class Robot:
    """A camera and a client beside a running node; use it in a `with`.

    Args:
        arguments: of the node, after --ros-args.
        command: that starts it.
        state: of the node's status in which it is to be before work begins.
    """

    def __init__(self, *arguments: str, command: tuple[str, ...] = FAKE_NODE, state: int = Status.READY) -> None:
        self._context = rclpy.Context()
        rclpy.init(context=self._context)
        self.node = rclpy.create_node("robot", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin)
        self.answers: list[Answer] = []
        self.tokens: list[AnswerToken] = []
        self.diagnostics: list[dict[str, str]] = []
        self.statuses: list[Status] = []
        self.camera_statuses: dict[str, DiagnosticStatus] = {}
        self._state = state
        self.node.create_subscription(Answer, "nvila/answer", self.answers.append, 100)
        self.node.create_subscription(AnswerToken, "nvila/answer_stream", self.tokens.append, 1000)
        self.node.create_subscription(Status, "nvila/status", self.statuses.append, TRANSIENT_LOCAL)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.question = self.node.create_publisher(String, "nvila/question", 10)
        self._ask = self.node.create_client(Ask, "nvila/ask")
        self._goals = ActionClient(self.node, AskVideo, "nvila/ask_video")
        # Frames of tests have stamps of their own, far from the clock.
        self.process = NodeProcess("-p", "max_age_s:=0.0", *arguments, command=command)

    def __enter__(self) -> Robot:
        self._thread.start()
        try:
            if self._state == Status.BUILDING:  # else a small build may be over before both have found each other
                os.kill(child_of(self.process.pid), signal.SIGSTOP)
            self._meet()
        except BaseException as error:  # else the node would be found by all tests behind this one
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def _meet(self) -> None:
        """Wait until the node is ready and both have found each other."""
        self.wait_for_state(self._state)
        assert self._ask.wait_for_service(WAIT_S)
        assert self._goals.wait_for_server(WAIT_S)
        wait_until(lambda: self.question.get_subscription_count() == 1, "the node subscribes to questions")
        wait_until(lambda: self.node.count_publishers("nvila/answer") == 1, "the node publishes answers")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as stack:
            stack.callback(rclpy.shutdown, context=self._context)
            stack.callback(self.node.destroy_node)
            stack.callback(self._thread.join)
            stack.callback(self._executor.shutdown)
            if self.process.is_running:
                code = self.process.stop()
                assert kind is not None or code == 0, self.process.log

    def wait_for_state(self, state: int, within_s: float = WAIT_S) -> Status:
        """Wait until the node says that its model is in a state."""
        wait_until(
            lambda: not self.process.is_running or bool(self.statuses and self.statuses[-1].state == state),
            lambda: f"state {state}, the last of {self.statuses}; the log:\n{self.process.log}",
            within_s,
        )
        assert self.process.is_running, self.process.log
        return self.statuses[-1]

    def camera(self, topic: str = "image", *, reliable: bool = True) -> Camera:
        """Return a camera that the node listens to."""
        camera = Camera(self.node, topic, reliable)
        wait_until(lambda: camera.num_listeners == 1, "the node subscribes to images")
        # The camera knows the node now, and the node the camera some time later: two diagnoses are a second.
        self.fresh_diagnostics()
        self.fresh_diagnostics()
        return camera

    def ask(self, question: str = "what is this", **fields: Any) -> Answer:
        """Ask by the service and wait."""
        return result_of(self.ask_later(question, **fields)).answer

    def ask_later(self, question: str = "what is this", **fields: Any) -> rclpy.Future:
        return self._ask.call_async(Ask.Request(question=question, **fields))

    def send_goal(
        self, question: str = "what is this", on_token: Callable[..., Any] | None = None, **fields: Any
    ) -> Any:
        """Send a goal to the action and return its handle."""
        goal = AskVideo.Goal(question=question, **fields)
        feedback = None if on_token is None else lambda message: on_token(message.feedback.token)
        return result_of(self._goals.send_goal_async(goal, feedback_callback=feedback))

    def show(self, camera: Camera, *stamps_s: float, **fields: Any) -> None:
        """Publish frames and wait until the node has them."""
        before = self.num_buffered()
        for stamp in stamps_s:
            camera.show(stamp, **fields)
            time.sleep(PACE_S)
        wait_until(lambda: self.num_buffered() >= before + len(stamps_s), "the frames are buffered")

    def num_buffered(self) -> int:
        return int(self.fresh_diagnostics()["frames_buffered"])

    def fresh_diagnostics(self) -> dict[str, str]:
        """Wait for the next diagnosis."""
        count = len(self.diagnostics)
        wait_until(lambda: len(self.diagnostics) > count, "the node tells its diagnostics")
        return self.diagnostics[-1]

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        told = {"stamp_s": str(message.header.stamp.sec)}
        node, *cameras = message.status
        self.camera_statuses = {status.name: status for status in cameras}
        self.diagnostics.append({v.key: v.value for v in node.values} | {"message": node.message} | told)


class Camera:
    """Publishes small images."""

    def __init__(self, node: rclpy.node.Node, topic: str, reliable: bool) -> None:
        reliability = QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT
        self._publisher = node.create_publisher(Image, topic, QoSProfile(depth=5, reliability=reliability))

    @property
    def num_listeners(self) -> int:
        return self._publisher.get_subscription_count()

    def show(self, stamp_s: float, **fields: Any) -> None:
        """Publish an image captured at a time; `fields` break it."""
        message = Image(width=8, height=6, step=24, encoding="rgb8", data=array.array("B", bytes(144)))
        message.header.frame_id = "optical"
        stamp_ns = round(stamp_s * NS_PER_S)
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, NS_PER_S)
        for name, value in fields.items():
            setattr(message, name, value)
        self._publisher.publish(message)


def result_of(future: rclpy.Future) -> Any:
    """Wait for a future that the robot's executor completes."""
    wait_until(future.done, "the future is done")
    return future.result()


def wait_until(is_true: Callable[[], bool], what: str | Callable[[], str], within_s: float = WAIT_S) -> None:
    """Wait for a condition.

    Args:
        is_true: asked again and again.
        what: was waited for; a function where it is known only then.

    Raises:
        AssertionError: it did not come true in time.
    """
    end = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < end, f"waited {within_s} s for: {what() if callable(what) else what}"
        time.sleep(0.01)


def child_of(pid: int) -> int:
    """The process that a process started; waits for it."""

    def children() -> list[int]:
        paths = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(word) for path in paths for word in path.read_text().split()]

    wait_until(lambda: bool(children()), "the node starts a build")
    return children()[0]


@contextlib.contextmanager
def running(
    *arguments: str, command: tuple[str, ...] = FAKE_NODE, state: int = Status.READY
) -> Iterator[tuple[Robot, Camera]]:
    """A robot with one camera, of which no frame is lost."""
    with Robot("-p", "image_reliability:=reliable", *arguments, command=command, state=state) as robot:
        yield robot, robot.camera()
