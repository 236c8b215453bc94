from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from nvila_ros.errors import FrameError
from nvila_ros.request import ModelInfo, Request
from nvila_ros.serving.scheduler import SHUTTING_DOWN, Scheduler
from nvila_ros.serving.worker import LookAhead, Worker
from nvila_ros.types import NS_PER_S, Answer, FinishReason, Frame, Piece, Query, RawFrame
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.image_decoding import decode
from tests.tiny import CRASH, DEADLY, KNOWN, NO_NUMBER, TOO_LONG, FakeModel, raw_frame

WAIT_S = 60.0
NEVER = LookAhead()


def decode_frame(raw: RawFrame) -> Frame:
    if raw.image.encoding != "rgb8":
        raise FrameError(f"unknown image encoding {raw.image.encoding!r}")
    return Frame(image=decode(raw.image), stamp_ns=raw.stamp_ns, camera=raw.camera)


class Bench:
    """A worker at work, and what it said."""

    def __init__(self, token_s: float = 0.0, ahead: LookAhead = NEVER) -> None:
        self.model = FakeModel(token_s)
        self.buffer: FrameBuffer[RawFrame] = FrameBuffer(10.0, 1 << 20)
        self.scheduler = Scheduler(8)
        self.num_decoded = 0
        self.worker = Worker(self.model, self.scheduler, self.buffer, self._decode, ahead=lambda: ahead)
        self.answers: list[Answer] = []
        self.pieces: list[Piece] = []

    def _decode(self, raw: RawFrame) -> Frame:
        self.num_decoded += 1
        return decode_frame(raw)

    def ask(self, question: str = "what is this", query_id: str = "a", **fields: object) -> None:
        values = {"cameras": ("camera",), "window_s": 2.0} | fields
        query = Query(query_id=query_id, question=question, **values)  # type: ignore[arg-type]
        self.scheduler.submit([Request(query, self.answers.append, self.pieces.append)], now_ns=0)

    def work(self) -> list[Answer]:
        """Work off what waits, one after the other, and return all answers."""
        while self.scheduler.state().num_waiting or self.scheduler.state().num_running:
            self.scheduler.wait(0.001)
        return self.answers


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    bench.worker.start()
    yield bench
    bench.scheduler.close(0)
    assert bench.worker.join(WAIT_S)


def test_answer_is_about_the_frames_sampled_from_the_window(bench: Bench) -> None:
    for i in range(10):
        bench.buffer.push(raw_frame(i / 2))

    bench.ask(num_frames=3, window_s=2.0)

    (answer,) = bench.work()
    assert answer.finish_reason is FinishReason.STOP
    assert [frame.stamp_ns / NS_PER_S for frame in answer.frames] == [2.5, 3.5, 4.5]


def test_pieces_joined_are_the_text(bench: Bench) -> None:
    bench.buffer.push(raw_frame(1))

    bench.ask("one two three")

    (answer,) = bench.work()
    assert "".join(piece.text for piece in bench.pieces) == answer.text == "one two three"
    assert [piece.is_final for piece in bench.pieces] == [False] * 3 + [True]


def test_empty_buffer_gives_no_frames(bench: Bench) -> None:
    bench.ask()

    (answer,) = bench.work()
    assert answer.finish_reason is FinishReason.NO_FRAMES
    assert "is the camera publishing" in answer.error


def test_frame_that_cannot_be_converted_fails_its_query_only(bench: Bench) -> None:
    good = raw_frame(1)
    bad = RawFrame(
        image=type(good.image)(data=np.zeros(4, np.uint8), encoding="jpegish", width=1, height=1, step=4),
        stamp_ns=2 * NS_PER_S,
    )
    bench.buffer.push(bad)
    bench.ask(query_id="bad")
    bench.work()
    bench.buffer.push(raw_frame(3))
    bench.ask(query_id="good")

    first, second = bench.work()
    assert (first.finish_reason, second.finish_reason) == (FinishReason.FAILED, FinishReason.STOP)
    assert "jpegish" in first.error


def test_question_that_the_model_refuses_is_invalid(bench: Bench) -> None:
    bench.buffer.push(raw_frame(1))

    bench.ask(TOO_LONG)

    (answer,) = bench.work()
    assert answer.finish_reason is FinishReason.INVALID
    assert "8 positions" in answer.error


def test_broken_runtime_fails_the_query_and_the_worker_goes_on(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.buffer.push(raw_frame(1))
    with caplog.at_level(logging.ERROR):
        bench.ask(CRASH, query_id="broken")
        bench.ask(query_id="next")
        first, second = bench.work()

    assert (first.finish_reason, second.finish_reason) == (FinishReason.FAILED, FinishReason.STOP)
    assert first.error == "ZeroDivisionError: the runtime broke"
    assert [record.message for record in caplog.records] == [
        "query_id=broken failed: ZeroDivisionError: the runtime broke"
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_worker_that_dies_fails_what_runs_waits_and_comes_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.buffer.push(raw_frame(1))
    bench.ask(DEADLY, query_id="running")
    bench.ask(query_id="waiting")

    bench.worker.start()
    assert bench.worker.join(WAIT_S)
    bench.ask(query_id="late")

    assert bench.worker.has_died
    assert [(a.query.query_id, a.finish_reason.name) for a in bench.answers] == [
        ("running", "FAILED"),
        ("waiting", "FAILED"),
        ("late", "REJECTED"),
    ]
    assert {answer.error for answer in bench.answers} == {
        "the worker thread has died (SystemExit: the worker dies), and the node ends"
    }


def test_result_that_is_no_number_is_a_fault_until_the_model_answers(bench: Bench) -> None:
    bench.buffer.push(raw_frame(1))
    bench.ask(NO_NUMBER)
    (failed,) = bench.work()
    fault = bench.worker.numerics_fault

    bench.ask()
    bench.work()

    assert failed.finish_reason is FinishReason.FAILED
    assert failed.error == fault == "1 logit is NaN"
    assert bench.worker.numerics_fault == ""


def test_close_while_answering_ends_at_a_token_and_answers_all() -> None:
    bench = Bench(token_s=0.01)
    bench.buffer.push(raw_frame(1))
    bench.ask("word " * 1000, query_id="long", max_tokens=1000)
    bench.ask(query_id="waiting")
    bench.worker.start()
    while not bench.pieces:
        pass

    bench.scheduler.close(0)

    assert bench.worker.join(WAIT_S)
    reasons = {answer.query.query_id: answer.finish_reason for answer in bench.answers}
    assert reasons == {"waiting": FinishReason.CANCELED, "long": FinishReason.CANCELED}
    assert {answer.error for answer in bench.answers} == {SHUTTING_DOWN}
    (long,) = [answer for answer in bench.answers if answer.query.query_id == "long"]
    assert long.text.startswith("word")


def test_standing_queries_of_one_clip_are_answered_together_and_the_broken_one_alone_fails(bench: Bench) -> None:
    bench.buffer.push(raw_frame(1))
    requests = [
        Request(Query(query_id=name, question=name, standing=name, cameras=("camera",)), bench.answers.append)
        for name in ("a", "b", "c")
    ]

    bench.scheduler.submit(requests, 0)

    answers = bench.work()
    assert [answer.text for answer in answers] == ["a", "b", "c"]
    assert {answer.frames for answer in answers} == {answers[0].frames}


def test_follow_up_of_a_known_conversation_needs_no_frame(bench: Bench) -> None:
    bench.ask(query_id="known", conversation=KNOWN, is_follow_up=True)
    bench.ask(query_id="unknown", conversation="other", is_follow_up=True)

    reasons = {answer.query.query_id: answer.finish_reason for answer in bench.work()}
    assert reasons == {"known": FinishReason.STOP, "unknown": FinishReason.NO_FRAMES}


def test_newest_frame_is_encoded_ahead_while_nothing_is_asked() -> None:
    bench = Bench(ahead=LookAhead(rate_hz=200.0, cameras=("camera",)))
    bench.buffer.push(raw_frame(1))
    bench.worker.start()
    wait_until(lambda: bench.model.prefetched[:2] == [NS_PER_S] * 2)
    bench.buffer.push(raw_frame(2))
    wait_until(lambda: 2 * NS_PER_S in bench.model.prefetched)

    bench.ask()

    assert [answer.finish_reason for answer in bench.work()] == [FinishReason.STOP]
    bench.scheduler.close(0)
    assert bench.worker.join(WAIT_S)


def test_encoding_ahead_stops_for_a_question() -> None:
    bench = Bench(ahead=LookAhead(rate_hz=200.0, cameras=("camera",)))
    bench.model.is_slow_ahead = True
    bench.buffer.push(raw_frame(1))
    bench.worker.start()
    wait_until(lambda: bool(bench.model.prefetched))

    bench.ask()

    assert [answer.finish_reason for answer in bench.work()] == [FinishReason.STOP]
    bench.scheduler.close(0)
    assert bench.worker.join(WAIT_S)


def damaged(frame: RawFrame) -> RawFrame:
    """A frame that cannot be decoded."""
    return replace(frame, image=replace(frame.image, encoding="nonsense"))


def test_damaged_frame_is_dropped_when_it_is_encoded_ahead_and_logged_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench = Bench(ahead=LookAhead(rate_hz=500.0, cameras=("camera",)))
    for second in range(20):
        bench.buffer.push(damaged(raw_frame(second)))
    bench.worker.start()
    wait_until(lambda: bench.buffer.state().num_frames == 0)
    bench.scheduler.close(0)
    assert bench.worker.join(WAIT_S)

    assert caplog.text.count("a damaged frame was dropped") == 1
    assert bench.buffer.state().num_dropped["damaged"] + bench.buffer.state().num_dropped["aged"] == 20


@pytest.mark.parametrize("bad", [(2,), (1, 3), (4,)])
def test_question_is_answered_from_the_frames_that_are_whole(bench: Bench, bad: tuple[int, ...]) -> None:
    for second in range(5):
        bench.buffer.push(damaged(raw_frame(second)) if second in bad else raw_frame(second))

    bench.ask(num_frames=8, window_s=10.0)
    bench.ask(num_frames=8, window_s=10.0, query_id="b")

    for answer in bench.work():
        assert answer.finish_reason is FinishReason.STOP
        assert [frame.stamp_ns // NS_PER_S for frame in answer.frames] == [k for k in range(5) if k not in bad]
    assert bench.buffer.state().num_dropped["damaged"] == len(bad)
    assert bench.num_decoded == 5 + 5 - len(bad)  # once a question, and damaged ones once only


def test_another_model_answers_from_the_next_query_on(bench: Bench) -> None:
    bench.buffer.push(raw_frame(1))
    bench.ask()
    bench.work()
    other = FakeModel()
    other.info = ModelInfo("other", "numpy", "none")

    bench.worker.use(other)
    bench.ask()

    assert [answer.model for answer in bench.work()] == ["fake", "other"]


def wait_until(is_done: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not is_done():
        assert time.monotonic() < end_s, "it did not happen"
        time.sleep(0.001)
