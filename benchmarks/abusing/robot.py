"""The node under abuse: a process of its own, with a camera that works and a client that expects answers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import rclpy
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image
from std_msgs.msg import String

from nvila_ros.action import AskVideo
from nvila_ros.msg import Answer, Status
from nvila_ros.paths import images_profile
from nvila_ros.ros.camera_publisher import image_message, ros_args
from nvila_ros.ros.messages import REQUESTS, TRANSIENT_LOCAL, stamp_from_ns
from nvila_ros.srv import AddQuery, Ask, EnableQuery, ListQueries, RemoveQuery
from nvila_ros.world.live_world import LiveWorld
from nvila_ros.world.rendering import render

ROOT = Path(__file__).parents[2]
PARAMETERS = {
    "buffer_bytes": 32 << 20,
    "frame_cache_bytes": 32 << 20,
    "max_standing": 4,
    "threads": 1,
    "image_reliability": "reliable",
}
START_S = 600.0
LATE_S = 30.0
MAX_LINE = 4000
SERVICES = {"ask": Ask, "add_query": AddQuery, "remove_query": RemoveQuery, "enable_query": EnableQuery}


class AbuseFault(Exception):  # noqa: N818 - what is looked for, not an error of ours
    """The node did what it never should."""


class Abused:
    """A node, and what is needed to abuse it and to see whether it still works.

    Args:
        hang_s: longest wait for anything.

    Attributes:
        slowest_s: longest answer to a plain question.
        answers: the last ones, of the topic.
    """

    def __init__(self, hang_s: float) -> None:
        self.hang_s, self.slowest_s, self.num_lines = hang_s, 0.0, 0
        self.answers: deque[Answer] = deque(maxlen=4096)
        self.node = rclpy.create_node("abuser")
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        create = self.node.create_client
        self.services = {name: create(kind, f"nvila/{name}", qos_profile=REQUESTS) for name, kind in SERVICES.items()}
        self.services |= {"list_queries": create(ListQueries, "nvila/list_queries")}
        self.parameters = create(SetParameters, "nvila/set_parameters")
        self.changes, self.states = create(ChangeState, "nvila/change_state"), create(GetState, "nvila/get_state")
        self.goals = ActionClient(self.node, AskVideo, "nvila/ask_video")
        self.question = self.node.create_publisher(String, "nvila/question", 100)
        self.images = self.node.create_publisher(Image, "image", 5)
        self.node.create_subscription(Answer, "nvila/answer", lambda told: self.answers.append(told), 1000)
        self.node.create_subscription(
            Status, "nvila/status", lambda told: self._statuses.append(told.state), TRANSIENT_LOCAL
        )
        self._statuses: list[int] = []
        _, scene, t_s = LiveWorld(3).scene_at(0.0)
        self._frame = image_message(render(scene, t_s, 160, 120))
        self._process: subprocess.Popen[str] | None = None
        self.tail: deque[str] = deque(maxlen=200)
        self.log_fault = ""

    @property
    def pid(self) -> int:
        """Of the node."""
        assert self._process is not None, "it was started"
        return self._process.pid

    def start(self) -> None:
        """Start the node and wait until it answers."""
        self._statuses.clear()
        command = [sys.executable, "-m", "nvila_ros.ros.node", *ros_args(PARAMETERS)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        self.wait(lambda: Status.READY in self._statuses, "the model is ready", START_S)
        self.wait(self.is_discovered, "the node's endpoints are found", START_S)

    def is_discovered(self) -> bool:
        """Whether client and node know each other."""
        clients = [*self.services.values(), self.parameters, self.changes, self.states]
        is_heard = self.images.get_subscription_count() == self.question.get_subscription_count() == 1
        return is_heard and self.goals.server_is_ready() and all(client.service_is_ready() for client in clients)

    def stop(self, number: int, times: int = 1) -> None:
        """Send a signal, and expect an end in order."""
        assert self._process is not None, "it was started"
        for _ in range(times):
            self._process.send_signal(number)
            time.sleep(0.05)
        begin_s = time.monotonic()
        try:
            code = self._process.wait(4 * self.hang_s)  # it says goodbye to clients for two seconds
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AbuseFault(f"{signal.Signals(number).name} did not end it within {4 * self.hang_s:g} s") from None
        if code:
            raise AbuseFault(
                f"{signal.Signals(number).name} ended it with {code} after {time.monotonic() - begin_s:.1f} s"
            )

    def kill(self) -> None:
        """End what is left of it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def publish(self, publisher: Any, message: Any) -> None:
        """Publish a message or its bytes; what the middleware has no room for, while the node is busy, is not sent."""
        with contextlib.suppress(RuntimeError):  # the base of all that rclpy raises here
            publisher.publish(message)

    def call(self, client: Any, request: Any) -> Any:
        """Call a service and return its response."""
        return self.result(client.call_async(request), f"{client.srv_name} responds")

    def result(self, future: Any, what: str) -> Any:
        """Turn the client until a future is done."""
        self.wait(future.done, what, self.hang_s)
        return future.result()

    def wait(self, is_true: Any, what: str, within_s: float) -> None:
        """Turn the client until a condition holds; what comes late is told from what never comes."""
        begin_s = time.monotonic()
        while not is_true():
            waited_s = time.monotonic() - begin_s
            if self._process is not None and self._process.poll() is not None:
                raise AbuseFault(f"the node ended by itself with {self._process.returncode}, while: {what}")
            if waited_s > within_s + LATE_S:
                raise AbuseFault(f"hang: waited {waited_s:.0f} s until {what}")
            self.executor.spin_once(timeout_sec=0.02)
        waited_s = time.monotonic() - begin_s
        if waited_s > within_s:
            raise AbuseFault(f"late: it took {waited_s:.1f} s, {within_s:g} are allowed, until {what}")

    def check(self) -> None:
        """Expect an answer to a plain question about a fresh frame, and that everything else was told properly."""
        begin_s = time.monotonic()
        self._frame.header.stamp = stamp_from_ns(time.time_ns())
        self.publish(self.images, self._frame)
        while True:
            request = Ask.Request(question="How many objects are there?", priority=255)
            answer = self.call(self.services["ask"], request).answer
            if answer.finish_reason == Answer.STOP:
                break
            if answer.finish_reason not in (Answer.NO_FRAMES, Answer.REJECTED, Answer.CANCELED):
                raise AbuseFault(f"a plain question ended {answer.finish_reason_name}: {answer.error}")
            if time.monotonic() - begin_s > self.hang_s:
                raise AbuseFault(f"a plain question still ends {answer.finish_reason_name}: {answer.error}")
            self._frame.header.stamp = stamp_from_ns(time.time_ns())
            self.publish(self.images, self._frame)
        self.slowest_s = max(self.slowest_s, time.monotonic() - begin_s)
        for told in self.answers:
            check_answer(told)
        self.answers.clear()
        if self.log_fault:
            raise AbuseFault(self.log_fault)

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None, "it is a pipe"
        for line in process.stderr:
            self.num_lines += 1
            self.tail.append(line[:500])
            if "Traceback" in line or len(line) > MAX_LINE:
                self.log_fault = f"the log holds a traceback or a line of {len(line)} characters: {line[:300]}"


def check_answer(answer: Answer) -> None:
    """Expect that an answer is one, or says which rule was broken."""
    if answer.finish_reason == Answer.FAILED:
        raise AbuseFault(f"an answer ended FAILED: {answer.error[:500]}")
    is_given = answer.finish_reason in (Answer.STOP, Answer.LENGTH)
    if not is_given and not answer.error:
        raise AbuseFault(f"an answer ended {answer.finish_reason_name} and names no rule")
    if len(answer.error) > MAX_LINE:
        raise AbuseFault(f"an error has {len(answer.error)} characters: {answer.error[:200]}")


def isolate() -> None:
    """Keep this machine's other ROS processes out, and the logs of this one together."""
    from nvila_ros.ros.domain import free_domain

    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ["ROS_DOMAIN_ID"] = str(free_domain())
    # A request of 15 MB took 20 s through the usual shared memory of 512 KiB, and buffers were never given back.
    os.environ.update(images_profile() | {"RMW_FASTRTPS_USE_QOS_FROM_XML": "1"})
    os.environ["ROS_LOG_DIR"] = tempfile.mkdtemp(prefix="nvila-abuse-")
