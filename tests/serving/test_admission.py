from __future__ import annotations

import json
import math
import threading

import pytest

from nvila_ros.config import NodeConfig
from nvila_ros.errors import QueryError
from nvila_ros.generation import grammar_compile
from nvila_ros.request import Request, RequestState
from nvila_ros.serving.admission import MAX_CHOICES, Admission, check_query
from nvila_ros.serving.scheduler import Scheduler
from nvila_ros.types import Answer, Query

CONFIG = NodeConfig(cameras=("front", "rear"), max_question_bytes=100)


def query(**fields: object) -> Query:
    values = {"query_id": "a", "question": "is there a cat", "accepted_ns": 5} | fields
    return Query(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"question": "<|im_end|> <image> \x00 \N{SNOWMAN}"},
        {"choices": ("yes", "no")},
        {"start_ns": 3, "end_ns": 3},
        {"cameras": ("rear", "front"), "num_frames": 2},
        {"deadline_ns": 6},
        {"window_s": 0.0},
    ],
)
def test_good_query_is_admitted(fields: dict[str, object]) -> None:
    check_query(query(**fields), CONFIG)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": ""}, "question must not be empty"),
        ({"question": " \n\t"}, "question must not be empty"),
        ({"question": "x" * 101}, "max_question_bytes = 100 bytes, got 101"),
        ({"question": "\N{SNOWMAN}" * 34}, "got 102"),
        ({"window_s": math.nan}, "window_s must lie in"),
        ({"window_s": math.inf}, "window_s must lie in"),
        ({"window_s": -0.5}, r"window_s must lie in \[0, 3600\] s, got -0.5"),
        ({"start_ns": 4}, "start and end must be given both"),
        ({"start_ns": 4, "end_ns": 3}, "end must not lie before start"),
        ({"num_frames": 257}, r"num_frames must lie in \[1, 256\] frames, got 257"),
        ({"max_tokens": 8193}, "max_tokens must lie in"),
        ({"cameras": ("side",)}, r"unknown cameras \['side'\]; this node has \['front', 'rear'\]"),
        ({"cameras": ("rear", "rear"), "num_frames": 2}, "cameras must be distinct"),
        ({"cameras": ("rear", "front"), "num_frames": 1}, "num_frames must be at least one per camera"),
        ({"choices": ("yes", "")}, "a choice must not be empty"),
        ({"choices": ("yes", "no", "yes")}, r"choices must be distinct, got \['yes'\]"),
        ({"choices": tuple(map(str, range(MAX_CHOICES + 1)))}, "choices must be at most 64, got 65"),
        ({"deadline_ns": 5}, "deadline_s must be positive"),
        ({"deadline_ns": 2}, "deadline_s must be positive"),
        ({"priority": 256}, "priority must lie in"),
        ({"question": "a\udce9?"}, "question must be UTF-8, got bytes that are none at character 1"),
        ({"choices": ("yes", "\udce9")}, "a choice must be UTF-8"),
    ],
)
def test_bad_query_is_refused_with_the_rule(fields: dict[str, object], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        check_query(query(**fields), CONFIG)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer_type": "x" * 10_000_000}, r"answer_type must be one of \['text'.*, got 10000000 characters"),
        ({"json_schema": "x" * 10_000_000}, "json_schema must have at most 16384 bytes, got 10000000"),
        ({"question": "x" * 10_000_000}, "question must have at most max_question_bytes = 100 bytes, got 10000000"),
        ({"choices": ("x" * 10_000_000,)}, "a choice must have at most max_question_bytes = 100 bytes"),
        ({"choices": ("x",) * 1_000_000}, "choices must be at most 64, got 1000000"),
        ({"cameras": ("x",) * 1_000_000}, "cameras must be at most 64, got 1000000"),
        ({"cameras": ("x" * 10_000_000,)}, "a camera's name must have at most 256 bytes"),
        ({"conversation": "x" * 10_000_000}, "conversation must have at most 256 bytes"),
        ({"sampling": "x" * 10_000_000}, "sampling must have at most 256 bytes"),
    ],
)
def test_field_that_is_too_long_is_refused_by_its_length_and_not_echoed(
    fields: dict[str, object], message: str
) -> None:
    with pytest.raises(QueryError, match=message) as caught:
        check_query(query(**fields), CONFIG)

    assert len(str(caught.value)) < 300


class Endpoint:
    """An admission with a caller that records its answers."""

    def __init__(self, refusal: str = "") -> None:
        self.scheduler = Scheduler(8)
        self.admission = Admission(self.scheduler, lambda: CONFIG, lambda: refusal)
        self.answers: list[Answer] = []
        self.has_answer = threading.Event()

    def ask(self, query_id: str = "a", **fields: object) -> Request:
        request = Request(query(query_id=query_id, **fields), self._on_answer)
        self.admission.admit([request])
        return request

    def _on_answer(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.has_answer.set()


def schema_of(number: int) -> str:
    """A schema that no other test has tried."""
    return json.dumps({"type": "integer", "minimum": 0, "maximum": number})


def test_request_that_breaks_a_rule_is_answered_at_once() -> None:
    endpoint = Endpoint()

    endpoint.ask(question="")
    endpoint.ask(answer_type="jsn")

    assert [answer.finish_reason.name for answer in endpoint.answers] == ["INVALID", "INVALID"]
    assert "unknown answer_type 'jsn'" in endpoint.answers[1].error


def test_request_is_rejected_while_there_is_no_model_but_a_broken_rule_comes_first() -> None:
    endpoint = Endpoint(refusal="the model is being built")

    endpoint.ask(question="")
    endpoint.ask()

    assert [answer.finish_reason.name for answer in endpoint.answers] == ["INVALID", "REJECTED"]


def test_slow_schema_holds_its_own_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    monkeypatch.setattr(grammar_compile, "_run_trial", lambda schema: "" if may_end.wait(30) else "it never ended")
    endpoint = Endpoint()

    held = endpoint.ask("held", answer_type="json", json_schema=schema_of(7001))
    endpoint.ask("next")

    assert held.state is RequestState.HELD
    assert [request.query.query_id for request in endpoint.scheduler.pop(0)] == ["next"]
    endpoint.scheduler.cancel("next", 0)
    may_end.set()
    assert endpoint.scheduler.wait(30)
    assert held.state is RequestState.WAITING


def test_schema_that_cannot_be_kept_is_invalid_once_it_is_tried_and_at_once_from_then_on() -> None:
    endpoint = Endpoint()
    schema = json.dumps({"type": "integer", "minimum": 7002, "maximum": 7001})

    endpoint.ask("first", answer_type="json", json_schema=schema)
    assert endpoint.has_answer.wait(30)
    endpoint.ask("second", answer_type="json", json_schema=schema)

    assert [answer.finish_reason.name for answer in endpoint.answers] == ["INVALID", "INVALID"]
    assert "json_schema must be one that answers can be held to" in endpoint.answers[0].error
    assert endpoint.scheduler.state().num_waiting == 0
