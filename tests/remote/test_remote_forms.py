"""Choices and JSON of the remote model: how each dialect is held to them, and what is read of the answer."""

from __future__ import annotations

import json
import math

import pytest

from nvila_ros.types import FinishReason, Piece
from tests.remote.asking_remotely import ask, remote
from tests.remote.scripted_server import end, scripted_server, stream, text

YES = math.log(0.6), math.log(0.3)


def test_choices_come_with_probabilities_of_all_spellings() -> None:
    tops = {"Yes": YES[0], "no": YES[1], "maybe": math.log(0.1)}
    with scripted_server(stream(text("Yes", [("Yes", YES[0], tops)]), *end()), owner="vllm") as server:
        answer = ask(remote(server.url), answer_type="yes_no")
    (body,) = server.bodies

    assert (answer.text, answer.choices) == ("yes", ("yes", "no"))
    assert answer.probabilities == pytest.approx((2 / 3, 1 / 3))
    assert body["structured_outputs"]["choice"] == ["yes", "yes.", "Yes", "Yes.", "no", "no.", "No", "No."]
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    assert body["max_tokens"] > len("yes.")


@pytest.mark.parametrize("content", ['{"answer":"left"}', '{ "answer": "left" }'])
def test_choices_of_openai_are_values_of_a_property(content: str) -> None:
    head, tail = content.split("left")
    tokens = [
        (head[:-1], 0.0, {head[:-1]: 0.0}),
        ('"left', math.log(0.75), {'"left': math.log(0.75), '"right': math.log(0.25)}),
        (tail, 0.0, {tail: 0.0}),
    ]
    with scripted_server(stream(text(content, tokens), *end())) as server:
        answer = ask(remote(server.url), choices=("left", "right"))
    schema = server.bodies[0]["response_format"]["json_schema"]["schema"]

    assert answer.text == "left"
    assert answer.probabilities == pytest.approx((0.75, 0.25))
    assert schema["properties"]["answer"]["enum"] == ["left", "right"]


def test_choices_of_sglang_are_a_regular_expression() -> None:
    with scripted_server(stream(text("a.b", [("a.b", 0.0, {"a.b": 0.0})]), *end()), owner="sglang") as server:
        answer = ask(remote(server.url), choices=("a.b", "c"))

    assert server.bodies[0]["regex"] == r"(a\.b|c)"
    assert answer.probabilities == (1.0, 0.0)


def test_a_server_without_logprobs_gives_a_choice_without_probabilities() -> None:
    with scripted_server(stream(text('{"answer":"left"}'), *end())) as server:
        answer = ask(remote(server.url), choices=("left", "right"))

    assert (answer.text, answer.choices, answer.probabilities) == ("left", (), ())


def test_an_answer_that_is_none_of_the_choices_is_no_answer() -> None:
    with scripted_server(stream(text("I would say left"), *end()), owner="vllm") as server:
        answer = ask(remote(server.url), choices=("left", "right"))

    assert answer.finish_reason is FinishReason.FAILED
    assert "one of ['left', 'right']" in answer.error


@pytest.mark.parametrize("owner", ["openai", "vllm", "sglang", "nvila_ros"])
def test_json_is_held_to_its_schema_and_checked(owner: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    pieces: list[Piece] = []
    with scripted_server(
        stream(text('{"n":'), text(" 3}"), *end()), stream(text('{"n"'), *end()), owner=owner
    ) as server:
        model = remote(server.url)
        good = ask(model, answer_type="json", json_schema=json.dumps(schema), pieces=pieces)
        bad = ask(model, answer_type="json", json_schema=json.dumps(schema))

    assert json.loads(good.text) == {"n": 3}
    assert "".join(piece.text for piece in pieces) == good.text
    assert json.dumps(schema) in json.dumps(server.bodies[0])
    assert bad.finish_reason is FinishReason.FAILED
    assert "JSON of the schema" in bad.error


def test_a_number_of_many_is_unwrapped_from_the_object_that_openai_needs() -> None:
    with scripted_server(stream(text('{"answer": 417}'), *end())) as server:
        answer = ask(remote(server.url), answer_type="integer", minimum=0, maximum=999)

    assert answer.text == "417"
    assert server.bodies[0]["response_format"]["json_schema"]["schema"]["properties"]["answer"]["maximum"] == 999
