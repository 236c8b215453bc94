"""The remote model against a server on a real socket that sends what other engines send, and what none should."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from nvila_ros.remote import connection
from nvila_ros.remote import model as remote_model
from nvila_ros.request import Request
from nvila_ros.types import Answer, FinishReason, Piece, Query
from tests.remote.asking_remotely import ask, frame, remote
from tests.remote.scripted_server import (
    begin_stream,
    end,
    error,
    hang_up,
    scripted_server,
    send_chunk,
    send_json,
    silence,
    stream,
    stream_for_ever,
    text,
)
from tests.tiny import FakeModel

HELLO = stream(text("Bon"), text("jour"), *end(prompt_tokens=40, completion_tokens=2))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once."""
    monkeypatch.setattr(remote_model, "FIRST_WAIT_S", 0.001)


def test_text_comes_in_pieces_with_counts_and_the_models_name() -> None:
    usage = {"prompt_tokens": 40, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 30}}
    pieces: list[Piece] = []
    with scripted_server(stream(text("Bon"), text("jour"), *end(**usage))) as server:
        answer = ask(remote(server.url), pieces=pieces)

    assert (answer.text, answer.finish_reason) == ("Bonjour", FinishReason.STOP)
    assert [piece.text for piece in pieces] == ["Bon", "jour", ""]
    assert (answer.model, answer.backend, answer.precision) == ("big-model", "remote", "unknown")
    counts = answer.counts
    assert (counts.num_prompt_tokens, counts.num_reused_tokens, counts.num_answer_tokens) == (40, 30, 2)


def test_a_request_shows_pictures_before_the_question_and_asks_for_the_likeliest_token() -> None:
    with scripted_server(HELLO) as server:
        ask(remote(server.url), "Why?", [frame(1), frame(2, 9)], system="Be brief.", max_tokens=9, stop=("x",))
    (body,) = server.bodies

    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    parts = body["messages"][1]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    assert parts[0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert parts[0] != parts[1]
    assert (body["temperature"], body["max_completion_tokens"], body["stop"]) == (0, 9, ["x"])
    assert (body["model"], body["stream"], body["stream_options"]) == ("big-model", True, {"include_usage": True})


def test_the_key_is_shown_and_connections_stay_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "DRAIN_S", 10.0)
    with scripted_server(HELLO) as server:
        model = remote(server.url, key="secret", model="m", dialect="openai")
        answers = [ask(model).text for _ in range(3)]

    assert answers == ["Bonjour"] * 3
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}
    assert server.num_connections == 1
    assert "secret" not in repr(model._settings)


@pytest.mark.parametrize("reply", [error(429, "busy", Retry_After="0"), error(503, "loading"), hang_up])
def test_a_question_is_asked_again_while_the_server_is_busy(reply: Any) -> None:
    with scripted_server(reply, reply, HELLO) as server:
        model = remote(server.url)
        answer = ask(model)

    assert answer.text == "Bonjour"
    assert len(server.bodies) == 3
    assert model.counters()["remote_asked_again"] == 2


def test_a_server_that_stays_busy_is_given_up_by_its_own_words() -> None:
    with scripted_server(error(429, "come back later")) as server:
        answer = ask(remote(server.url, retries=1))

    assert answer.finish_reason is FinishReason.FAILED
    assert "429: come back later" in answer.error
    assert len(server.bodies) == 2


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_the_server_refuses_is_invalid_and_asked_once(status: int) -> None:
    with scripted_server(error(status, "too many pictures")) as server:
        answer = ask(remote(server.url, FakeModel()))

    assert answer.finish_reason is FinishReason.INVALID
    assert "too many pictures" in answer.error
    assert len(server.bodies) == 1


@pytest.mark.parametrize(("status", "hint"), [(401, "remote_key_file"), (404, "remote_model")])
def test_a_wrong_key_or_model_names_the_parameter(status: int, hint: str) -> None:
    with scripted_server(error(status, "no")) as server:
        answer = ask(remote(server.url))

    assert answer.finish_reason is FinishReason.FAILED
    assert hint in answer.error


def test_a_silent_server_is_given_up() -> None:
    with scripted_server(silence) as server:
        answer = ask(remote(server.url, timeout_s=0.2, retries=0))

    assert answer.finish_reason is FinishReason.FAILED
    assert "silent" in answer.error


def test_an_answer_that_breaks_off_keeps_what_was_said_and_is_not_asked_again() -> None:
    pieces: list[Piece] = []
    with scripted_server(stream(text("Bon"), is_whole=False)) as server:
        answer = ask(remote(server.url, FakeModel()), pieces=pieces)

    assert (answer.finish_reason, answer.text) == (FinishReason.FAILED, "Bon")
    assert "before it was whole" in answer.error or "broke off" in answer.error
    assert len(server.bodies) == 1
    assert pieces[-1].is_final


def test_a_cancel_closes_the_connection_and_keeps_what_was_said() -> None:
    pieces: list[Piece] = []
    with scripted_server(stream_for_ever) as server:
        stop = lambda: FinishReason.CANCELED if len(pieces) >= 3 else None  # noqa: E731
        answer = ask(remote(server.url), pieces=pieces, should_stop=stop)
        assert server.left.wait(30.0)

    assert answer.finish_reason is FinishReason.CANCELED
    assert answer.text.startswith("word word word ")


def test_a_deadline_ends_a_question_that_nobody_answers() -> None:
    with scripted_server(silence) as server:
        asked: list[None] = []
        stop = lambda: FinishReason.DEADLINE if asked.append(None) or len(asked) > 3 else None  # noqa: E731
        answer = ask(remote(server.url), should_stop=stop)

    assert answer.finish_reason is FinishReason.DEADLINE


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (send_json(b"<html>"), "JSON"),
        (send_json(b"hello", Content_Type="text/plain"), "JSON or server-sent events"),
        (stream(b"[1]"), "JSON objects"),
        (stream({"choices": [{"delta": {"content": "x"}, "finish_reason": "content_filter"}]}), "content_filter"),
        (stream({"error": {"message": "out of memory"}}), "out of memory"),
        (stream(text("x")), "before it was whole"),
        (send_json({"choices": [{"message": {"content": "x"}}], "usage": 3}), "before it was whole"),
        (send_json({}), "before it was whole"),
    ],
)
def test_what_is_no_answer_is_named(reply: Any, fault: str) -> None:
    with scripted_server(reply) as server:
        answer = ask(remote(server.url, retries=0))

    assert answer.finish_reason is FinishReason.FAILED
    assert fault in answer.error


def test_a_server_that_leaves_out_what_is_not_needed_is_understood() -> None:
    """As Hugging Face's `transformers serve` does: no `[DONE]`, no `stream_options`."""
    refusal = error(422, "Unsupported fields in the request: {'stream_options'}")

    def reply(handler: Any) -> None:
        begin_stream(handler)
        for chunk in (text("Bonjour"), end()[0]):
            send_chunk(handler, chunk)
        handler.wfile.write(b"0\r\n\r\n")

    with scripted_server(refusal, reply) as server:
        model = remote(server.url, retries=0)
        answers = [ask(model), ask(model)]

    assert [answer.text for answer in answers] == ["Bonjour", "Bonjour"]
    assert ["stream_options" in body for body in server.bodies] == [True, False, False]


def test_a_server_that_does_not_stream_is_understood() -> None:
    body = {"model": "m2", "choices": [{"message": {"content": "all at once"}, "finish_reason": "length"}]}
    with scripted_server(send_json(body)) as server:
        answer = ask(remote(server.url))

    assert (answer.text, answer.finish_reason, answer.model) == ("all at once", FinishReason.LENGTH, "m2")


def test_the_fallback_answers_while_the_server_does_not_and_is_named() -> None:
    with scripted_server(error(503, "down"), HELLO) as server:
        model = remote(server.url, FakeModel(), retries=0)
        first, second = ask(model, "one two"), ask(model, "three")
        model._away_until_ns = 0
        third = ask(model)

    assert [(answer.text, answer.backend) for answer in (first, second, third)] == [
        ("one two", "numpy"),
        ("three", "numpy"),
        ("Bonjour", "remote"),
    ]
    assert len(server.bodies) == 2, "while the server is away it is left alone"
    assert model.counters()["fallback_answers"] == 2
    assert model.remark() == ""


def test_a_server_that_is_not_there_yet_is_found_later() -> None:
    with scripted_server(HELLO) as server:
        url = server.url
    model = remote(url)
    model.warm_up()

    answer = ask(model)

    assert answer.finish_reason is FinishReason.FAILED
    assert "cannot be reached" in answer.error
    assert "cannot be reached" in model.remark()


def test_questions_about_one_clip_go_out_side_by_side() -> None:
    meeting = threading.Barrier(remote_model.MAX_CALLS)

    def meet(handler: Any) -> None:
        meeting.wait(30.0)  # breaks unless so many ask at once
        HELLO(handler)

    answers: list[Answer] = []
    with scripted_server(meet) as server:
        model = remote(server.url)
        queries = [Query(query_id=f"q{i:02}", question=f"{i}?") for i in range(2 * remote_model.MAX_CALLS)]
        model.answer_all([Request(query, answers.append) for query in queries], [frame()])

    assert sorted(answer.query.query_id for answer in answers) == [query.query_id for query in queries]
    assert {answer.text for answer in answers} == {"Bonjour"}
    assert server.most_open <= remote_model.MAX_CALLS
    assert model.counters()["pictures_sent"] == 1


@pytest.mark.parametrize("owner", ["openai", "vllm", "sglang"])
def test_when_is_refused_by_name(owner: str) -> None:
    with scripted_server(HELLO, owner=owner) as server:
        answer = ask(remote(server.url, FakeModel()), "it falls", [frame()], answer_type="when")

    assert answer.finish_reason is FinishReason.INVALID
    assert f"'when' is not available on a server of dialect {owner}" in answer.error
    assert not server.bodies


def test_a_conversation_is_sent_again_with_its_pictures() -> None:
    with scripted_server(HELLO) as server:
        model = remote(server.url)
        ask(model, "What?", [frame(5)], conversation="talk")
        follow_up = Query(query_id="q2", question="And?", conversation="talk", is_follow_up=True)
        assert model.has_conversation(follow_up)
        answer = ask(model, "And?", conversation="talk", is_follow_up=True)

    first, second = server.bodies
    roles = [message["role"] for message in second["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert second["messages"][0] == first["messages"][0]
    assert second["messages"][1]["content"] == "Bonjour"
    assert [each.stamp_ns for each in answer.frames] == [5]
