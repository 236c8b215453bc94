"""Whoever asks gets the answer, and those who listen hear of it first."""

from __future__ import annotations

import pytest

from nvila_ros.config import NodeConfig
from nvila_ros.errors import FrameError
from nvila_ros.request import Request
from nvila_ros.serving.answering import Answering
from nvila_ros.types import Answer, FinishReason, Frame, FrameRef, Piece, Query, RawFrame
from tests.tiny import FakeClock


class Recorder:
    def __init__(self) -> None:
        self.heard: list[Answer | Piece] = []

    def on_answer(self, answer: Answer) -> None:
        self.heard.append(answer)

    def on_piece(self, piece: Piece) -> None:
        self.heard.append(piece)


class Broken(Recorder):
    def on_answer(self, answer: Answer) -> None:
        raise RuntimeError("its topic is gone")


def refuse(frame: RawFrame) -> Frame:
    raise FrameError("not decoded here")


@pytest.fixture
def answering() -> Answering:
    return Answering(NodeConfig, lambda: "no model", FakeClock(5_000_000_000), refuse)


def test_listeners_hear_of_an_answer_before_whoever_asked(answering: Answering) -> None:
    recorder = Recorder()
    answering.listeners.append(recorder)
    seen: list[int] = []
    query = Query(query_id=answering.new_id(), question="x", cameras=("camera",))
    answering.submit([answering.request(query, lambda answer: seen.append(len(recorder.heard)))])

    assert seen == [1]
    assert [answer.finish_reason for answer in recorder.heard if isinstance(answer, Answer)] == [FinishReason.REJECTED]


def test_a_listener_that_fails_keeps_no_answer_from_whoever_asked(answering: Answering) -> None:
    answering.listeners.append(Broken())
    answers: list[Answer] = []
    answering.submit([answering.request(Query(query_id="q", question="x", cameras=("camera",)), answers.append)])

    assert len(answers) == 1


def test_pieces_are_told_only_of_what_is_streamed(answering: Answering) -> None:
    recorder = Recorder()
    answering.listeners.append(recorder)
    query = Query(query_id="q", question="x")
    silent: Request = answering.request(query, is_streamed=False)
    streamed = answering.request(query)

    assert silent.on_piece is None
    assert streamed.on_piece is not None
    streamed.on_piece(Piece(query_id="q", index=0, text="a", is_final=True))
    assert len(recorder.heard) == 1


def test_ages_count_from_the_clock_of_the_stamps(answering: Answering) -> None:
    assert answering.age_s(FrameRef(stamp_ns=3_000_000_000, camera="c")) == 2.0
    assert answering.age_s(FrameRef(stamp_ns=6_000_000_000, camera="c")) == -1.0
    assert answering.age_s(None) == 0.0
