"""Requests that are worked on together."""

from __future__ import annotations

import pytest

from nvila_ros.request import ModelInfo, Request, RequestGroup, StopWork
from nvila_ros.types import Answer, FinishReason, Query
from tests.tiny import FakeClock


def test_one_that_was_preempted_is_left_alone_though_its_answer_was_taken_back() -> None:
    ended: list[FinishReason] = []
    requests = [begun(str(i), ended) for i in range(2)]
    group = RequestGroup(requests)
    requests[0].should_stop = lambda: FinishReason.CANCELED

    group.check()
    group.check()

    assert group.active == requests[1:]
    assert ended == [FinishReason.CANCELED]
    requests[1].should_stop = requests[0].should_stop
    with pytest.raises(StopWork):
        group.check()


def test_one_that_begins_anew_is_worked_on_again() -> None:
    request = begun("0", [])
    request.end(FinishReason.CANCELED)

    request.begin(ModelInfo("m", "b", "p"), [], FakeClock())

    assert RequestGroup([request]).active == [request]


def begun(query_id: str, ended: list[FinishReason]) -> Request:
    """A request in progress; as the scheduler preempts it, its answer is taken back."""

    def take_back(request: Request) -> None:
        assert isinstance(request.answer, Answer)
        ended.append(request.answer.finish_reason)
        request.answer = None

    request = Request(Query(query_id=query_id, question="q"), lambda answer: None)
    request.on_end = take_back
    request.begin(ModelInfo("m", "b", "p"), [], FakeClock())
    return request
