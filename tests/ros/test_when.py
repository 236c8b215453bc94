"""The real node says when something happened, by service, action, `nvila call` and events of standing queries."""

from __future__ import annotations

import array
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from nvila_ros.msg import Answer, Event, StandingQuery
from nvila_ros.srv import AddQuery
from nvila_ros.tools.interval_scores import temporal_iou
from nvila_ros.world.rendering import render
from nvila_ros.world.timed_events import eval_timed_case
from tests.ros.robot import PACE_S, REAL_NODE, ROOT, Camera, Robot, result_of, running, wait_until

pytestmark = pytest.mark.slow
CASE = eval_timed_case("there", 2)
EVENT, FIRST_S = CASE.question.text, 100.0
WINDOW = {"window_s": 5.0}  # of so many frames as a clip has


def show(camera: Camera, time_s: float) -> None:
    data = array.array("B", render(CASE.scene, time_s, 160, 120).tobytes())
    camera.show(FIRST_S + time_s, data=data, width=160, height=120, step=480)


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Robot, Camera]]:
    """A node that has seen a clip of which the truth is known."""
    with running("-p", "model:=nvila-tiny-when", "-p", "buffer_s:=3600.0", command=REAL_NODE) as (
        robot,
        camera,
    ):
        for time_s in CASE.times_s:
            show(camera, time_s)
            time.sleep(PACE_S)
        wait_until(lambda: robot.num_buffered() == len(CASE.times_s), "the node has the clip")
        yield robot, camera


@pytest.fixture
def robot(shared: tuple[Robot, Camera]) -> Robot:
    return shared[0]


def check(told: dict[str, Any]) -> None:
    """Hold what an answer's text says against the truth."""
    start, end = (FIRST_S + float(word) for word in CASE.question.answer.split())
    best = told["intervals"][0]
    assert told["method"] == "time_tokens"
    assert temporal_iou((best["start_ns"] / 1e9, best["end_ns"] / 1e9), (start, end)) > 0.5
    assert told["happens"] > 0.5


def test_service_gives_intervals_of_capture_stamps(robot: Robot) -> None:
    answer = robot.ask(EVENT, answer_type="when", **WINDOW)

    assert answer.finish_reason == Answer.STOP, answer.error
    check(json.loads(answer.text))
    assert list(answer.choices) == ["yes", "no"]
    assert answer.probabilities[0] == pytest.approx(json.loads(answer.text)["happens"], abs=1e-5)
    assert answer.num_frames == len(CASE.times_s)


def test_action_streams_the_answer_whole(robot: Robot) -> None:
    pieces: list[str] = []
    goal = robot.send_goal(EVENT, lambda message: pieces.append(message.piece), answer_type="when", **WINDOW)

    answer = result_of(goal.get_result_async()).result.answer

    check(json.loads(answer.text))
    assert all(piece in ("", answer.text) for piece in pieces)


def test_call_prints_it(robot: Robot) -> None:
    words = ("ask", EVENT, "--type", "when", "--frames", str(len(CASE.times_s)), "--window", "5")

    done = subprocess.run(
        [sys.executable, "-m", "nvila_ros.tools.cli", "call", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
    )

    assert done.returncode == 0, done.stderr
    check(json.loads(done.stdout))


def test_event_of_a_standing_query_says_since_when(shared: tuple[Robot, Camera]) -> None:
    robot, _ = shared
    events: list[Event] = []
    robot.node.create_subscription(Event, "nvila/event", events.append, 8)
    add = robot.node.create_client(AddQuery, "nvila/add_query")
    wait_until(lambda: robot.node.count_publishers("nvila/event") == 1 and add.service_is_ready(), "it can be asked")
    query = StandingQuery(
        name="when", question=EVENT, answer_type="when", trigger="rising", cameras=["camera"], rate_hz=10.0, **WINDOW
    )

    added = result_of(add.call_async(AddQuery.Request(query=query)))

    assert added.success, added.error
    wait_until(lambda: bool(events), "an event comes")
    assert events[0].phase == Event.BEGIN
    check(json.loads(events[0].text))


def test_windows_without_frames_and_odd_fields_are_refused_by_name(robot: Robot) -> None:
    empty = robot.ask(EVENT, answer_type="when", ago_start_s=3000.0, ago_end_s=2990.0)
    mixed = robot.ask(EVENT, answer_type="when", choices=["a", "b"])

    assert (empty.finish_reason, empty.text) == (Answer.NO_FRAMES, "")
    assert mixed.finish_reason == Answer.INVALID
    assert "choices goes with answer_type 'choices'" in mixed.error
