"""What nobody means to send: the door answers with 4xx, and goes on answering."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.malformed import GOOD, breakages, check_against_document, raw_requests
from tests.http.serving import Served, scene, serving
from tests.tiny import load_fake

NUM_BROKEN, NUM_RAW = 60, 150


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(load_fake, model="fake", max_age_s=0.0) as made:
        made.cameras["front"].show(scene())
        yield made


@pytest.mark.slow
def test_broken_requests_end_as_4xx(served: Served) -> None:
    rng = random.Random(0)
    seen: set[int] = set()
    for body in breakages(GOOD, rng, NUM_BROKEN):
        status, found, _ = served.request("POST", "/v1/chat/completions", json.dumps(body))
        assert status < 500 or found["error"]["code"] in ("deadline", "no_frames"), (body, found)
        seen.add(status)
    assert {200, 400} <= seen
    assert served.ask("still here")[0] == 200


def test_bytes_at_random_end_as_4xx(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    for content in raw_requests(random.Random(1), NUM_RAW):
        found = exchange(served, content)
        assert found.split()[1][:1] in (b"2", b"4") or found.split()[1] == b"501", (content, found)
    assert not caplog.records  # a client must not be able to fill the log
    assert served.ask("still here")[0] == 200


def exchange(served: Served, content: bytes) -> bytes:
    """Send bytes, close that half of the connection, and return all that comes."""
    with socket.create_connection(served.address, timeout=30) as connection:
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").read()


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize(
    "content",
    [
        b"\0",
        b"GET / HT",
        b"GET / HTTP/1.1\r\nHost: local",
        HEAD,
        HEAD + b"Content-Length: 90\r\n\r\n{",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{",
        HEAD + b"Content-Length: 2\r\n\r\n{",
        HEAD + b"Content-Length: 40\r\n\r\n" + b'{"messages": []}',
    ],
)
def test_a_request_that_is_cut_off_is_400(served: Served, content: bytes) -> None:
    found = exchange(served, content)

    assert found.startswith((b"HTTP/1.1 400", b"HTTP/1.0 400")), found
    assert found.count(b"HTTP/1.") == 1


def test_a_whole_request_is_answered_though_nothing_follows(served: Served) -> None:
    found = exchange(served, b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n")

    assert found.startswith(b"HTTP/1.1 200")
    assert found.endswith(b"}")


def test_a_connection_that_stays_open_ends_without_a_word(served: Served) -> None:
    with socket.create_connection(served.address, timeout=30) as connection:
        file = connection.makefile("rb")
        for _ in range(2):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            length = 0
            while (line := file.readline().strip()) != b"":
                if line.lower().startswith(b"content-length"):
                    length = int(line.split()[1])
            assert file.read(length)
        connection.shutdown(socket.SHUT_WR)
        assert file.read() == b""


@pytest.mark.slow
def test_responses_are_those_of_the_openapi_document(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("schemathesis")
    monkeypatch.setattr("nvila_ros.http.api.MAX_FRAME_WAIT_S", 0.1)
    statuses = check_against_document(served.url, 1)

    assert {"200", "400"} <= statuses.keys()
    assert "500" not in statuses
    assert served.ask("still here")[0] == 200


BODIES: list[Any] = [
    b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"messages": NaN}', b"{" * 5000, b'{"a":' * 90 + b"1" + b"}" * 90,
    {}, {"messages": []}, {"messages": "x"}, {"messages": [None]}, {"messages": [{"role": "user"}]},
    {"messages": [{"role": "tool", "content": "x"}]}, {"messages": [{"role": "user", "content": ""}]},
    {"messages": [{"role": "assistant", "content": "x"}]}, {"messages": [{"role": "user", "content": [{}]}]},
    {"messages": [{"role": "user", "content": "\ud800"}]}, {"messages": [{"role": "user", "content": "x"}], "n": 2},
    {"messages": [{"role": "user", "content": "x"}] * 65},
    *({"messages": [{"role": "user", "content": "x"}], **more} for more in (
        {"max_tokens": 0}, {"max_tokens": 1e9}, {"max_tokens": "4"}, {"max_tokens": True}, {"temperature": 3},
        {"top_p": -1}, {"stop": [""]}, {"stop": 5}, {"stop": ["a"] * 17}, {"top_logprobs": 2}, {"stream": "yes"},
        {"logprobs": True, "top_logprobs": 21}, {"response_format": {"type": "xml"}}, {"response_format": "json"},
        {"response_format": {"type": "json_schema"}}, {"tools": [{"type": "function"}]}, {"logit_bias": {"1": 2}},
        {"structured_outputs": {"regex": "a"}}, {"structured_outputs": {"choice": ["a", "a"]}},
        {"guided_regex": "a"}, {"guided_choice": []}, {"guided_choice": ["a"], "guided_json": {}}, {"priority": 256},
        {"deadline_s": 0}, {"deadline_s": "soon"}, {"conversation": "x" * 300}, {"model": 5},
        {"guided_json": {"type": "nonsense"}}, {"guided_json": "{"},
        {"answer_type": "json"}, {"answer_type": "when", "guided_choice": ["a"]},
    )),
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_a_body_that_breaks_a_rule_is_400_with_the_rule(served: Served, body: Any) -> None:
    status, found, _ = served.request("POST", "/v1/chat/completions", body)
    assert status == 400, found
    assert found["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"), [("PUT", "/v1/models"), ("DELETE", "/v1/chat/completions"), ("GET", "/nope")]
)
def test_what_is_not_served_is_404_or_405(served: Served, method: str, path: str) -> None:
    status, found, _ = served.request(method, path)
    assert status in (404, 405)
    assert found["error"]["type"].endswith("error")
