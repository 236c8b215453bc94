"""Every question is asked in its time and judged by the stamps of its answer, not by when it was asked."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from nvila_ros.errors import NoFramesError, ServerTimeoutError
from nvila_ros.tools.demo import session
from nvila_ros.tools.demo.questions import QUIZ, QuizItem, find_truth, pose
from nvila_ros.tools.demo.report import QuizResult, as_table, captions, summarize
from nvila_ros.tools.demo.session import LEAD_S, SCENE_S, CameraSession, DemoError, choose_epoch
from nvila_ros.types import NS_PER_S, Answer, FinishReason, FrameRef, Query, Timings
from nvila_ros.world.frame_source import WorldSource
from nvila_ros.world.questions import STILL_KINDS, Question, is_correct

EPOCH_NS = 1_700_000_000 * NS_PER_S
ITEMS = tuple(item for items in QUIZ for item in items)


def _stamps(world_s: float, item: QuizItem) -> list[int]:
    times_s = np.linspace(world_s - item.window_s, world_s, item.num_frames)
    return [EPOCH_NS + round(t_s * NS_PER_S) for t_s in times_s.tolist()]


class TrueModel:
    """Answers by the truth of the frames that it chose late, on a clock of its own.

    Args:
        world: what it sees.
        latency_s: from the question to the newest frame that it looks at.
        num_blind: so many first questions find no frame.
    """

    def __init__(self, world: WorldSource, latency_s: float = 0.1, num_blind: int = 0) -> None:
        self.world, self.latency_s, self.num_blind = world, latency_s, num_blind
        self.clock_s = 0.0
        self.asked: list[str] = []

    def now_ns(self) -> int:
        return EPOCH_NS + round(self.clock_s * NS_PER_S)

    def rest(self, duration_s: float) -> None:
        self.clock_s += duration_s

    def ask(self, question: str, on_piece: Callable[[str], None] | None, **fields: Any) -> Answer:
        self.asked.append(question)
        self.clock_s += self.latency_s
        if len(self.asked) <= self.num_blind:
            raise NoFramesError("the window holds no frame")
        alike = [item for item in ITEMS if item.num_frames == fields["num_frames"]]
        stamps_ns = _stamps(self.clock_s, alike[0])
        truths = [find_truth(self.world, item, Question(item.kind, question, ""), stamps_ns) for item in alike]
        answer = next((truth.answer for truth in truths if truth), "no idea")
        if on_piece is not None:
            on_piece(answer)
        return _answer(answer, stamps_ns)


def _answer(text: str, stamps_ns: Sequence[int]) -> Answer:
    return Answer(
        query=Query(query_id="q", question=""),
        finish_reason=FinishReason.STOP,
        text=text,
        frames=tuple(FrameRef(stamp_ns=stamp_ns, camera="camera") for stamp_ns in stamps_ns),
        timings=Timings(ttft_s=0.04),
        model="m",
        backend="b",
        precision="p",
        age_s=0.05,
    )


def _run(model: TrueModel, items: Sequence[QuizItem]) -> list[QuizResult]:
    quiet = Console(quiet=True)
    return CameraSession(model, "world", model.world, spawned_ns=EPOCH_NS, since_ns=EPOCH_NS, console=quiet).run(items)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("latency_s", [0.02, 0.35, 0.9])
def test_true_answers_are_judged_right_however_late_they_look(seed: int, latency_s: float) -> None:
    model = TrueModel(WorldSource(seed, 640, 480, epoch_ns=EPOCH_NS), latency_s)

    rows = _run(model, ITEMS)

    assert [row.item for row in rows] == list(ITEMS)
    undecided = [row.item.kind for row in rows if row.truth is None]
    assert all(row.is_right for row in rows if row.truth is not None)
    assert len(undecided) <= (2 if latency_s > 0.5 else 0)


@pytest.mark.parametrize("start_s", [0.0, 0.9, 2.9, 3.1, 7.0, 16.0, 60.0])
def test_camera_soon_shows_a_moving_scene_however_long_it_takes_to_start(start_s: float) -> None:
    epoch_ns = choose_epoch(EPOCH_NS, start_s)

    world = WorldSource(0, 64, 48, epoch_ns=epoch_ns)
    moving = world.moment_at(EPOCH_NS + round((start_s + LEAD_S + 0.01) * NS_PER_S))
    assert epoch_ns <= EPOCH_NS
    assert moving.scene_id[1] % 2 == 1
    assert moving.t_s == pytest.approx(0.01, abs=1e-6)


def test_quiz_asks_every_kind_by_both_endpoints_about_frames_and_clips() -> None:
    assert len(ITEMS) >= 12
    assert {item.kind for item in ITEMS} == {*STILL_KINDS, "motion", "describe"}  # nothing appears in the live world
    assert {item.endpoint for item in ITEMS} == {"service", "action"}
    assert {(item.num_frames, item.window_s) for item in ITEMS} == {(1, 0.0), (8, 2.0)}
    assert len(set(ITEMS)) == len(ITEMS)


def test_camera_that_the_node_finds_late_is_asked_again() -> None:
    model = TrueModel(WorldSource(0, 640, 480, epoch_ns=EPOCH_NS), num_blind=3)

    rows = _run(model, ITEMS[:2])

    assert len(model.asked) == 5
    assert all(row.is_right for row in rows)


def test_camera_that_the_node_never_finds_gives_answers_without_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SESSION_S", 5.0)
    model = TrueModel(WorldSource(0, 640, 480, epoch_ns=EPOCH_NS), num_blind=1000)

    (row,) = _run(model, ITEMS[:1])

    assert row.error == "the window holds no frame"
    assert model.clock_s > session.DISCOVERY_S


def test_node_that_does_not_respond_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object, **__: object) -> Answer:
        raise ServerTimeoutError("/nvila/ask did not respond")

    model = TrueModel(WorldSource(0, 640, 480, epoch_ns=EPOCH_NS))
    monkeypatch.setattr(model, "ask", ask)

    with pytest.raises(DemoError, match="did not respond"):
        _run(model, ITEMS[:1])


def test_question_whose_time_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SESSION_S", 0.05)
    clip_of_ten_seconds = QuizItem("motion", 0, "service", 8, 10.0)

    with pytest.raises(DemoError, match="world: no time came to ask about motion"):
        _run(TrueModel(WorldSource(0, 640, 480, epoch_ns=EPOCH_NS)), [clip_of_ten_seconds])


@pytest.mark.parametrize("item", ITEMS, ids=lambda item: f"{item.kind}{item.seed}")
def test_no_truth_is_found_across_scenes(item: QuizItem) -> None:
    world = WorldSource(0, 640, 480, epoch_ns=EPOCH_NS)
    times_s = np.arange(0.0, 80.0, 0.1).tolist()

    posed = [(t, pose(world, item, _stamps(t, item)[-1], EPOCH_NS, SCENE_S)) for t in times_s]

    questions = [(t, question) for t, question in posed if question is not None]
    assert questions, "the question can be asked at some time"
    for t_s, question in questions:
        truth = find_truth(world, item, question, _stamps(t_s, item))
        assert truth == question
        across = [*_stamps(t_s, item)[:-1], EPOCH_NS + round((t_s // SCENE_S + 1.1) * SCENE_S * NS_PER_S)]
        if item.is_clip:
            assert find_truth(world, item, question, across) is None
        assert find_truth(world, item, question, []) is None


def test_summary_counts_answers_and_right_ones() -> None:
    item, question = ITEMS[0], Question("color", "What color is the star?", "red")
    shared = {"item": item, "asked": question}
    results = [
        QuizResult(camera="a", truth=question, answer=_answer("Red.", [EPOCH_NS]), **shared),
        QuizResult(camera="a", truth=question, answer=_answer("blue", [EPOCH_NS]), **shared),
        QuizResult(camera="b", truth=None, answer=_answer("red", [EPOCH_NS]), **shared),
        QuizResult(camera="b", truth=None, error="REJECTED: later", **shared),
    ]

    assert is_correct(question, "Red.")
    assert summarize(results, 5, 7) == {
        "answers": 3,
        "correct": 1,
        "asked": 5,
        "ttft_s_median": 0.04,
        "frames_dropped": 7,
    }
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(as_table(results))
    shown = console.export_text()
    assert shown.count(" ok ") == shown.count(" no ") == 1
    assert "REJECTED: later" in shown


def test_captions_show_stamps_and_truth() -> None:
    item, question = QuizItem("motion", 0, "service", 8, 2.0), Question("motion", "Which way?", "left")
    answer = _answer("up", [EPOCH_NS, EPOCH_NS + 1_500_000_000])
    result = QuizResult(camera="world", item=item, asked=question, truth=question, answer=answer)

    first, second = captions(result, answer)

    assert first == "world, 2 frames captured 22:13:20.000 to 22:13:21.500 UTC, truth: left"
    assert second == "answered 50 ms after the newest capture, first token 40 ms, m b p"
