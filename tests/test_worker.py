from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
import pytest

from nvila_ros.errors import FrameError, NoFramesError
from nvila_ros.scheduler import SHUTTING_DOWN, Scheduler, Ticket
from nvila_ros.types import Answer, FinishReason, Frame, Piece, Query, RawFrame
from nvila_ros.video.buffer import NS_PER_S, FrameBuffer
from nvila_ros.video.image_decoding import decode
from nvila_ros.worker import Worker, select_frames
from tests.tiny import CRASH, TOO_LONG, FakePerceiver, raw_frame

WAIT_S = 10.0


def decode_frame(raw: RawFrame) -> Frame:
    if raw.image.encoding != "rgb8":
        raise FrameError(f"unknown image encoding {raw.image.encoding!r}")
    return Frame(image=decode(raw.image), stamp_ns=raw.stamp_ns, camera=raw.camera)


class Bench:
    """A worker at work, and what it said."""

    def __init__(self, token_s: float = 0.0) -> None:
        self.buffer: FrameBuffer[RawFrame] = FrameBuffer(10.0, 1 << 20)
        self.scheduler = Scheduler(8)
        self.worker = Worker(FakePerceiver(token_s), self.scheduler, self.buffer, decode_frame)
        self.answers: list[Answer] = []
        self.pieces: list[Piece] = []

    def ask(self, question: str = "what is this", query_id: str = "a", **fields: object) -> None:
        values = {"cameras": ("camera",), "window_s": 2.0} | fields
        query = Query(query_id=query_id, question=question, **values)  # type: ignore[arg-type]
        self.scheduler.submit(Ticket(query=query, on_answer=self.answers.append, on_piece=self.pieces.append), now_ns=0)

    def work(self) -> list[Answer]:
        """Work off what waits, one after the other, and return all answers."""
        while self.scheduler.state().num_waiting or self.scheduler.state().is_running:
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
    assert [record.message for record in caplog.records] == ["query_id=broken failed"]


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


def held(*stamps_by_camera: tuple[str, list[float]]) -> FrameBuffer[RawFrame]:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(100.0, 1 << 20)
    for camera, stamps in stamps_by_camera:
        for stamp in stamps:
            buffer.push(raw_frame(stamp, camera))
    return buffer


def query(**fields: object) -> Query:
    return Query(query_id="a", question="?", **fields)  # type: ignore[arg-type]


def test_cameras_share_the_frames_and_come_in_capture_order() -> None:
    buffer = held(("left", [1, 2, 3, 4]), ("right", [1.5, 2.5, 3.5]))

    frames = select_frames(buffer, query(cameras=("left", "right"), num_frames=4, window_s=10))

    assert [(frame.camera, frame.stamp_ns / NS_PER_S) for frame in frames] == [
        ("left", 1),
        ("right", 1.5),
        ("right", 3.5),
        ("left", 4),
    ]


def test_camera_that_stopped_leaves_its_share_to_the_others() -> None:
    buffer = held(("left", [1, 2]), ("right", [50, 51, 52]))

    frames = select_frames(buffer, query(cameras=("left", "right"), num_frames=2, window_s=5))

    assert [frame.camera for frame in frames] == ["right", "right"]


def test_window_ends_at_the_newest_frame_of_the_cameras_asked() -> None:
    buffer = held(("left", [1, 2, 3]), ("right", [90]))

    frames = select_frames(buffer, query(cameras=("left",), num_frames=8, window_s=1))

    assert [frame.stamp_ns / NS_PER_S for frame in frames] == [2, 3]


def test_explicit_interval_is_taken_as_it_is() -> None:
    buffer = held(("left", [1, 2, 3, 4]))

    frames = select_frames(buffer, query(cameras=("left",), num_frames=8, start_ns=2 * NS_PER_S, end_ns=3 * NS_PER_S))

    assert [frame.stamp_ns / NS_PER_S for frame in frames] == [2, 3]


def test_empty_interval_names_what_the_buffer_holds() -> None:
    buffer = held(("left", [1, 2]))

    with pytest.raises(NoFramesError, match=r"in \[5.000, 6.000\] s; the buffer holds 2 from 1.000 to 2.000 s"):
        select_frames(buffer, query(cameras=("left",), start_ns=5 * NS_PER_S, end_ns=6 * NS_PER_S))
