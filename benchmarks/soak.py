"""Half an hour of everything at once: does the node stay whole?

The real node with nvila-tiny and the real camera (1280x720, 30 Hz, Fast DDS) run as two processes. Twenty standing
queries of several rates, clips and triggers stand, and a client asks at random beside them: over service and action,
about single frames, clips and the past, in all types, within conversations, some with too short a deadline or canceled.
Every query must get exactly one answer, the node's counts must add up, and its memory must stay flat. Prints a table
of the node's memory over time and, last, one JSON line; exit 1 if any of that fails.

    .venv/bin/python -m benchmarks.soak --minutes 30
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile
from rclpy.task import Future
from rich.console import Console
from rich.table import Table

from benchmarks.process_usage import resident_bytes
from nvila_ros.action import AskVideo
from nvila_ros.msg import Answer, Event, StandingQuery, Status
from nvila_ros.ros.camera_publisher import ros_args
from nvila_ros.ros.messages import TRANSIENT_LOCAL
from nvila_ros.srv import AddQuery, Ask, ListQueries
from nvila_ros.tools.demo.graph import ros_environment
from nvila_ros.tools.demo.subprocesses import Children
from nvila_ros.tools.options import positive, print_json
from nvila_ros.types import FinishReason

MIB = 1 << 20
NUM_STANDING = 20
NODE = "/nvila"
WAIT_S = 60.0
SETTLE_SHARE = 0.1  # of the time, until runtime and allocator have what they need
GROWTH_MIB = 24  # what an allocator may keep for itself after that
DEEP = QoSProfile(depth=4096)
COLOURS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "triangle")
SCHEMA = '{"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}'


class Soak:
    """The client: what it asked, and what came back."""

    def __init__(self, rng: random.Random) -> None:
        rclpy.init(args=[])
        self._rng = rng
        self._node = rclpy.create_node("nvila_soak")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._asks = self._node.create_client(Ask, f"{NODE}/ask")
        self._adds = self._node.create_client(AddQuery, f"{NODE}/add_query")
        self._lists = self._node.create_client(ListQueries, f"{NODE}/list_queries")
        self._goals = ActionClient(self._node, AskVideo, f"{NODE}/ask_video")
        self.answers: Counter[str] = Counter()  # by query_id, of the topic
        self.reasons: Counter[str] = Counter()
        self.num_asked = self.num_canceled = self.num_events = 0
        self.values: dict[str, int] = {}  # of the node's diagnostics
        self._open: set[Future] = set()
        self._states: list[int] = []
        self._node.create_subscription(Answer, f"{NODE}/answer", self._on_answer, DEEP)
        self._node.create_subscription(Event, f"{NODE}/event", self._on_event, DEEP)
        self._node.create_subscription(Status, f"{NODE}/status", self._on_status, TRANSIENT_LOCAL)
        self._node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 1)

    @property
    def num_open(self) -> int:
        """Questions whose answer has not come."""
        return len(self._open)

    def _on_status(self, message: Status) -> None:
        self._states.append(message.state)

    def wait_for_node(self) -> None:
        """Wait until the node answers."""
        self._wait(lambda: Status.READY in self._states and self._asks.service_is_ready())
        self._wait(lambda: self._goals.server_is_ready() and self._adds.service_is_ready())

    def add_standing(self) -> None:
        """Add the standing queries."""
        triggers = ("every", "on_change", "rising", "falling")
        for i in range(NUM_STANDING):
            query = StandingQuery(
                name=f"watch/{i}",
                question=f"Is there a {COLOURS[i % 5]} {SHAPES[i % 3]}?",
                rate_hz=(0.2, 0.5, 1.0)[i % 3],
                num_frames=(1, 1, 8)[i % 3],
                window_s=2.0,
                trigger=triggers[i % 4],
                debounce_n=1 + i % 2,
                debounce_m=1 + i % 2,
                priority=i % 2,
            )
            added = self._result(self._adds.call_async(AddQuery.Request(query=query)))
            assert added.success, added.error

    def ask_something(self) -> None:
        """Ask at random; the answer comes later."""
        self.num_asked += 1
        fields = self._fields()
        if self._rng.random() < 0.5:
            self._keep(self._asks.call_async(Ask.Request(**fields)))
            return
        is_canceled = self._rng.random() < 0.4
        future = self._goals.send_goal_async(AskVideo.Goal(**fields))
        self._keep(future)
        future.add_done_callback(lambda done: self._on_goal(done.result(), is_canceled))

    def states(self) -> list[Any]:
        """Return how the standing queries stand."""
        return list(self._result(self._lists.call_async(ListQueries.Request())).queries)

    def rest(self, duration_s: float) -> None:
        """Take in what comes, for this long."""
        end_s = time.monotonic() + duration_s
        while (left_s := end_s - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left_s)

    def settle(self) -> None:
        """Wait until every question has its answer, or no more come."""
        end_s = time.monotonic() + WAIT_S
        while self._open and time.monotonic() < end_s:
            self._executor.spin_once(timeout_sec=0.1)

    def close(self) -> None:
        """Leave ROS."""
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def _fields(self) -> dict[str, Any]:
        rng = self._rng
        fields: dict[str, Any] = {
            "question": f"Is there a {rng.choice(COLOURS)} {rng.choice(SHAPES)}?",
            "max_tokens": 16,
        }
        fields |= rng.choice(
            [
                {},
                {"answer_type": "yes_no"},
                {"choices": list(COLOURS), "question": "What colour is the object?"},
                {"answer_type": "integer", "minimum": 0, "maximum": 9, "question": "How many objects are there?"},
                {"answer_type": "json", "json_schema": SCHEMA},
                {"question": "What do you see?", "max_tokens": 48},
                {"answer_type": "no such type"},
            ]
        )
        fields |= rng.choice(
            [
                {},
                {"num_frames": 8, "window_s": 2.0},
                {"num_frames": 4, "ago_start_s": 6.0, "ago_end_s": 2.0, "sampling": "change"},
                {"num_frames": 4, "window_s": 5.0, "sampling": "recent"},
                {"conversation": f"c{rng.randrange(30)}"},
            ]
        )
        if rng.random() < 0.1:
            fields["deadline_s"] = rng.choice([0.001, 0.05])
        return fields | {"priority": rng.randrange(3)}

    def _on_goal(self, handle: Any, is_canceled: bool) -> None:
        if not handle.accepted:
            return
        self._keep(handle.get_result_async())
        if is_canceled:
            self.num_canceled += 1
            self._keep(handle.cancel_goal_async())

    def _keep(self, future: Future) -> None:
        self._open.add(future)
        future.add_done_callback(self._open.discard)

    def _on_answer(self, answer: Answer) -> None:
        self.answers[answer.query_id] += 1
        self.reasons[FinishReason(answer.finish_reason).name.lower()] += 1

    def _on_event(self, event: Event) -> None:
        self.num_events += 1

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status[:1]:  # the node's; its cameras' follow
            self.values |= {pair.key: int(pair.value) for pair in status.values if pair.value.isdigit()}

    def _result(self, future: Future) -> Any:
        self._wait(future.done)
        return future.result()

    def _wait(self, is_done: Any) -> None:
        end_s = time.monotonic() + WAIT_S
        while not is_done():
            assert time.monotonic() < end_s, "the node does not answer"
            self._executor.spin_once(timeout_sec=0.1)


def main() -> int:
    """Run the soak; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--every", type=float, default=0.4, metavar="S", help="mean seconds between questions")
    parser.add_argument("--seed", type=positive, default=1)
    args = parser.parse_args()
    environ = ros_environment()
    os.environ.update(environ)
    with tempfile.TemporaryDirectory() as folder, Children(Path(folder), environ) as children:
        settings = {"buffer_bytes": 96 << 20, "past_s": 20.0, "frame_cache_bytes": 32 << 20}
        node = children.start("node", "nvila_ros.ros.node", ros_args(settings))
        soak = Soak(random.Random(args.seed))
        try:
            soak.wait_for_node()
            camera = {"world": 0, "width": 1280, "height": 720, "rate_hz": 30.0}
            children.start("camera", "nvila_ros.ros.camera_publisher", ros_args(camera))
            soak.rest(3.0)
            soak.add_standing()
            rss = ask_for(soak, node.process.pid, args)
            return report(soak, rss, args)
        finally:
            soak.close()


def ask_for(soak: Soak, pid: int, args: argparse.Namespace) -> list[tuple[float, float]]:
    """Ask for the given time; return the node's memory over it."""
    rng = random.Random(args.seed + 1)
    start_s, total_s = time.monotonic(), 60 * args.minutes
    rss: list[tuple[float, float]] = []
    while (passed_s := time.monotonic() - start_s) < total_s:
        soak.ask_something()
        soak.rest(rng.expovariate(1 / args.every))
        if passed_s >= total_s * (len(rss) + 1) / 40:
            rss.append((passed_s, resident_bytes(pid) / MIB))
    soak.settle()
    soak.rest(3.0)
    return rss


def report(soak: Soak, rss: list[tuple[float, float]], args: argparse.Namespace) -> int:
    """Print the table and the JSON line; return the exit code."""
    table = Table("after s", "node's RSS, MiB")
    for passed_s, mib in rss[::4]:
        table.add_row(f"{passed_s:.0f}", f"{mib:.0f}")
    Console().print(table)
    settled = [mib for passed_s, mib in rss if passed_s >= SETTLE_SHARE * 60 * args.minutes]
    states = soak.states()
    standing = Counter[str]()
    for state in states:
        for name in ("asked", "answered", "missed", "repeated", "skipped", "events"):
            standing[name] += getattr(state, name)
    still_open = standing["asked"] - standing["answered"] - standing["missed"] - standing["repeated"]
    figures = {
        "minutes": args.minutes,
        "asked": soak.num_asked,
        "canceled": soak.num_canceled,
        "unanswered": soak.num_open,
        "answered_twice": sum(count > 1 for count in soak.answers.values()),
        "reasons": dict(soak.reasons),
        "standing": dict(standing),
        "standing_open": still_open,
        "events_heard": soak.num_events,
        "frames_received": soak.values.get("frames_received"),
        "frames_lost": soak.values.get("frames_lost"),
        "frames_encoded": soak.values.get("frames_encoded"),
        "frames_found": soak.values.get("frames_found"),
        "queries_given_way": soak.values.get("queries_given_way"),
        "rss_growth_mib": round(max(settled) - settled[0], 1),
    }
    print_json(figures)
    is_whole = not soak.num_open and not figures["answered_twice"] and 0 <= still_open <= NUM_STANDING
    return 0 if is_whole and figures["rss_growth_mib"] <= GROWTH_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
