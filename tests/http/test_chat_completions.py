"""Chat completions as clients of the robot world send them, and what becomes of those who leave, hurry or crowd."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import jsonschema
import numpy as np
import pytest

from nvila_ros.http.limits import MAX_CLIENT_REQUESTS
from tests.http.serving import Served, data_uri, picture, scene, wait_until
from tests.tiny import CRASH

LONG = "word " * 199 + "word"  # four seconds of the slow model


def said(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def content_of(answer: Any) -> Any:
    return answer["choices"][0]["message"]["content"]


def open_socket(served: Served, body: Any, path: str = "/v1/chat/completions") -> socket.socket:
    """Send a request by hand and return the socket."""
    content = json.dumps(body).encode()
    connection = socket.create_connection(served.address, timeout=45)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    """Return what comes up to a mark."""
    found = b""
    while mark not in found:
        more = connection.recv(65536)
        assert more, found
        found += more
    return found


def ended(served: Served) -> dict[str, int]:
    return served.server.answering.scheduler.state().num_ended


def test_live_vlm_webui_is_answered(tiny: Served) -> None:
    text = {"type": "text", "text": "Describe what you see in this image in one sentence."}
    status, answer = tiny.ask([text, picture(scene(), "jpeg")], model="nvila-tiny", max_tokens=512, temperature=0.7)

    assert status == 200
    assert content_of(answer)
    assert answer["nvila"]["ignored"] == ["temperature"]


def test_embodied_agents_is_answered(tiny: Served) -> None:
    asked = {
        "model": "nvila-tiny",
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture(scene(), "jpeg")]}
        ],
        "max_tokens": 100,
        "temperature": 0.8,
        "top_p": 0.9,
        "seed": 1,
        "stop": [],
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stream": True,
        "tools": [],
    }
    with open_socket(tiny, asked) as connection:
        lines = read_until(connection, b"[DONE]").decode().splitlines()

    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == chunks[-1]["nvila"]["text"]


def test_bob_llm_gets_its_json(tiny: Served) -> None:
    properties = {"color": {"enum": ["red", "green", "blue"]}, "is_round": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "seen", "schema": schema}}
    asked = [{"type": "text", "text": "What color is it?"}, {"type": "image_url", "image_url": data_uri(scene())}]
    status, answer = tiny.ask(asked, response_format=form, tool_choice="auto", top_p=0.9, max_tokens=60)

    assert status == 200
    jsonschema.validate(json.loads(content_of(answer)), schema)


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        ({"enum": ["yes", "no"]}, {'"yes"', '"no"'}),
        ({"type": "boolean"}, {"true", "false"}),
        ({"type": "integer", "minimum": 0, "maximum": 3}, set("0123")),
        (
            {"type": "object", "properties": {"is": {"type": "string", "enum": ["a", "b"]}}, "required": ["is"]},
            {'{"is":"a"}', '{"is":"b"}'},
        ),
    ],
)
def test_a_schema_of_few_values_is_scored(tiny: Served, schema: Any, values: set[str]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    status, answer = tiny.ask([picture(scene()), {"type": "text", "text": "Is there a star?"}], response_format=form)

    assert status == 200
    assert content_of(answer) in values
    assert sum(answer["nvila"]["probabilities"]) == pytest.approx(1)


def test_old_and_new_fields_mean_the_same_choices(tiny: Served) -> None:
    asked = [picture(scene()), {"type": "text", "text": "What color is the shape?"}]
    names = ["red", "green", "blue"]
    forms = [
        {"structured_outputs": {"choice": names}},
        {"guided_choice": names},
        {"guided_decoding": {"choice": names}},
    ]
    answers = [tiny.ask(asked, **form)[1] for form in forms]

    shares = [answer["nvila"]["probabilities"] for answer in answers]
    assert shares[0] == pytest.approx(shares[1], abs=1e-5)
    assert shares[0] == pytest.approx(shares[2], abs=1e-5)


def test_when_something_happens_is_told_by_the_stamps_of_the_pictures(tiny: Served) -> None:
    shown = [
        {**picture(scene()), "nvila": {"camera": "front", "stamp_ns": str(1_733_000_000_000_000_000 + i * 10**9)}}
        for i in range(3)
    ]
    status, answer = tiny.ask([*shown, {"type": "text", "text": "Is there a circle?"}], answer_type="when")

    told = json.loads(content_of(answer))
    assert status == 200, answer
    assert answer["nvila"]["choices"] == ["yes", "no"]
    assert told["happens"] == pytest.approx(answer["nvila"]["probabilities"][0], abs=1e-5)
    assert all(1_733_000_000 * 10**9 <= each["start_ns"] <= each["end_ns"] for each in told["intervals"])


def test_an_answer_ends_before_a_stop(tiny: Served) -> None:
    asked = [picture(scene()), {"type": "text", "text": "What do you see?"}]
    whole = content_of(tiny.ask(asked)[1])
    words = whole.split(" ")
    assert len(words) > 3
    stop = f"{words[1]} {words[2]}"  # over the border of two tokens

    for stream in (False, True):
        with open_socket(tiny, {"messages": said(asked), "stop": ["never", stop], "stream": stream}) as connection:
            found = read_until(connection, b"[DONE]" if stream else b'"ignored"').decode()
        texts = [json.loads(line[6:]) for line in found.splitlines() if line.startswith("data: {")]
        told = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in texts)
        assert told == whole[: whole.index(stop)] or not stream
        assert f'"text":{json.dumps(whole[: whole.index(stop)])},"finish_reason":"STOP"' in found


def test_logprobs_are_those_of_the_tokens(tiny: Served) -> None:
    asked = [picture(scene()), {"type": "text", "text": "What do you see?"}]
    answer = tiny.ask(asked, logprobs=True, top_logprobs=3)[1]

    tokens = answer["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == content_of(answer)
    for token in tokens:
        assert len(token["top_logprobs"]) == 3
        assert token["logprob"] == pytest.approx(token["top_logprobs"][0]["logprob"])  # greedy
        assert np.exp([top["logprob"] for top in token["top_logprobs"]]).sum() < 1 + 1e-5


def test_earlier_messages_are_part_of_the_question(tiny: Served) -> None:
    """Pictures of an earlier message are shown again: the conversation that the server keeps answers the same."""
    asked = [picture(scene()), {"type": "text", "text": "What do you see?"}]
    first = tiny.ask(asked, conversation="kept")[1]
    kept = tiny.ask("What color is it?", conversation="kept")[1]
    turns = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": content_of(first)},
        {"role": "user", "content": "What color is it?"},
    ]
    status, brought, _ = tiny.request("POST", "/v1/chat/completions", {"messages": turns})

    assert status == 200
    assert content_of(brought) == content_of(kept)
    assert brought["usage"]["prompt_tokens"] == kept["usage"]["prompt_tokens"]


def test_frames_of_one_camera_are_a_clip(tiny: Served) -> None:
    """As the node shows them: eight frames of the buffer, and the same eight sent along with camera and stamps."""
    camera, stamps = tiny.cameras["rear"], []
    for k in range(8):
        stamps.append(camera.show(scene(1, 0.3 + k / 8)))
        time.sleep(0.002)
    live = {"type": "image_url", "image_url": f"nvila:camera/rear?start_ns={stamps[0]}&end_ns={stamps[-1]}&frames=8"}
    text = {"type": "text", "text": "Where does it move?"}
    sent = [
        picture(scene(1, 0.3 + k / 8)) | {"nvila": {"camera": "rear", "stamp_ns": str(stamp)}}
        for k, stamp in enumerate(stamps)
    ]
    by_stamp = [{"type": "image_url", "image_url": {"url": f"nvila:frame/rear/{stamp}"}} for stamp in stamps]
    answers = [tiny.ask([text, live])[1], tiny.ask([text, *sent])[1], tiny.ask([text, *by_stamp])[1]]

    assert len({content_of(answer) for answer in answers}) == 1
    assert len({answer["usage"]["prompt_tokens"] for answer in answers}) == 1
    for answer in answers:
        assert [frame["stamp_ns"] for frame in answer["nvila"]["frames"]] == [str(stamp) for stamp in stamps]


def test_leaving_cancels_within_a_token(slow: Served) -> None:
    with open_socket(slow, {"messages": said(LONG), "stream": True, "max_tokens": 200}) as left:
        read_until(left, b"word")
    wait_until(lambda: ended(slow)["canceled"] == 1, "the query is canceled")

    with open_socket(slow, {"messages": said(LONG), "max_tokens": 200}) as left:
        wait_until(lambda: slow.server.answering.scheduler.state().num_running == 1, "it runs")
    wait_until(lambda: ended(slow)["canceled"] == 2, "one that is not streamed is canceled as well")


def test_a_full_queue_is_429_with_retry_after(slow: Served) -> None:
    body = {"messages": said(LONG), "max_tokens": 200}
    sockets = [open_socket(slow, body)]
    wait_until(lambda: slow.server.answering.scheduler.state().num_running == 1, "the first runs")
    sockets += [open_socket(slow, body) for _ in range(2)]
    wait_until(lambda: slow.server.answering.scheduler.state().num_waiting == 2, "the queue is full")
    status, error, headers = slow.request("POST", "/v1/chat/completions", body)
    for each in sockets:
        each.close()

    assert (status, error["error"]["type"], error["error"]["code"]) == (429, "rate_limit_error", "queue_full")
    assert headers["Retry-After"] == "1"


def test_a_deadline_that_passes_first_is_503_and_one_amid_the_answer_cuts_it(slow: Served) -> None:
    with open_socket(slow, {"messages": said(LONG), "max_tokens": 200}):
        wait_until(lambda: slow.server.answering.scheduler.state().num_running == 1, "it runs")
        status, error, headers = slow.request(
            "POST", "/v1/chat/completions", {"messages": said("x")}, X_Nvila_Deadline="0.1"
        )
        assert (status, error["error"]["code"], headers["x-should-retry"]) == (503, "deadline", "false")
    wait_until(lambda: ended(slow)["canceled"] == 1, "the first has left")
    status, answer = slow.ask(LONG, max_tokens=200, deadline_s=0.3)

    assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")
    assert answer["nvila"]["finish_reason"] == "DEADLINE"


def test_a_client_may_not_have_too_many_questions_open(slow: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_CLIENT_REQUESTS > 1
    monkeypatch.setattr("nvila_ros.http.guard.MAX_CLIENT_REQUESTS", 1)
    body = {"messages": said(LONG), "max_tokens": 200}
    with open_socket(slow, body):
        wait_until(lambda: slow.server.answering.scheduler.state().num_running == 1, "it runs")
        status, error, _ = slow.request("POST", "/v1/chat/completions", body)

    assert (status, error["error"]["code"]) == (429, "client_busy")


def test_a_model_that_fails_is_500_and_the_next_is_answered(slow: Served) -> None:
    status, error = slow.ask(CRASH)
    assert (status, error["error"]["type"]) == (500, "server_error")
    assert slow.ask("well")[0] == 200


def test_no_frame_is_503_now_and_404_of_the_past(slow: Served) -> None:
    slow.server.answering.buffer.clear()
    now = slow.ask([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": "nvila:latest"}])
    past = slow.ask(
        [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": "nvila:latest?start_ns=1&end_ns=2"}]
    )

    assert (now[0], now[1]["error"]["code"]) == (503, "no_frames")
    assert (past[0], past[1]["error"]["code"]) == (404, "no_frames")


def test_a_stream_that_ends_amid_its_answer_says_so(slow: Served) -> None:
    with open_socket(slow, {"messages": said(LONG), "stream": True, "max_tokens": 200}) as left:
        read_until(left, b"word")
        slow.server.answering.scheduler.abort(time.monotonic_ns(), "the worker was lost")
        found = read_until(left, b"[DONE]")

    assert b'data: {"error":{"message":"the worker was lost","type":"server_error"' in found


def test_answers_in_progress_end_before_the_door_closes(slow: Served) -> None:
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(slow.ask("one two three four five", max_tokens=20)))
    asking.start()
    wait_until(lambda: slow.server.answering.scheduler.state().num_running == 1, "it runs")
    slow.server.door.drain()
    asking.join()
    status, error = slow.ask("one more")

    assert content_of(found[0][1]) == "one two three four five"
    assert (status, error["error"]["code"]) == (503, "draining")
