"""What the page uses: state, events, pictures, standing queries."""

from __future__ import annotations

import gzip
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nvila_ros.http.app import PAGE
from nvila_ros.http.limits import NUM_KEPT
from tests.http.serving import Served, scene, serving, wait_until
from tests.tiny import load_fake

JPEG = "/api/cameras/front/latest.jpg"


class Events:
    """Follows the events on a thread of its own."""

    def __init__(self, served: Served, **headers: str) -> None:
        self.found: list[tuple[str, int | None, Any]] = []
        self._socket = socket.create_connection(served.address, timeout=45)
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self._socket.sendall(f"GET /api/events HTTP/1.1\r\nHost: localhost\r\n{more}\r\n".encode())
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def of(self, kind: str) -> list[Any]:
        return [data for each, _, data in self.found if each == kind]

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _read(self) -> None:
        event: dict[str, str] = {}
        for line in self._socket.makefile("r", encoding="utf-8"):
            name, _, value = line.rstrip("\n").partition(": ")
            if name in ("event", "id", "data"):
                event[name] = value
            elif not name and "data" in event:
                number = int(event["id"]) if "id" in event else None
                self.found.append((event.get("event", ""), number, json.loads(event["data"])))
                event = {}


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(load_fake, "front", "left/rear", model="fake", max_age_s=0.0) as made:
        made.cameras["front"].show(scene())
        made.cameras["left/rear"].show(scene(1))
        yield made


@pytest.fixture
def events(served: Served) -> Iterator[Events]:
    followed = Events(served)
    wait_until(lambda: followed.of("state"), "the state comes")
    yield followed
    followed.close()


def test_the_state_is_what_a_viewer_needs(served: Served) -> None:
    status, state, _ = served.request("GET", "/api/state")

    assert status == 200
    assert state["model"]["state"] == "READY"
    assert [camera["name"] for camera in state["cameras"]] == ["front", "left/rear"]
    assert state["cameras"][0]["newest_ns"].isdigit()
    assert state["cameras"][0]["age_s"] >= 0
    assert state["counters"]["queue_depth"] == 0


def test_every_answer_is_an_event_with_its_frames(served: Served, events: Events) -> None:
    served.ask("what is this", model="live")
    wait_until(lambda: events.of("answer"), "the answer is told")

    (answer,) = events.of("answer")
    assert (answer["text"], answer["finish_reason"]) == ("what is this", "STOP")
    assert [frame["camera"] for frame in answer["frames"]] == ["front", "left/rear"]
    assert served.request("GET", f"/api/answers/{answer['query_id']}")[1] == answer
    assert served.request("GET", "/api/answers?limit=1")[1] == {"answers": [answer]}
    for frame in answer["frames"]:
        path = f"/api/cameras/{frame['camera']}/frame?stamp_ns={frame['stamp_ns']}"
        status, _, headers = served.request("GET", path)
        assert (status, headers["X-Nvila-Stamp-Ns"]) == (200, frame["stamp_ns"])


def test_pictures_are_the_frames(served: Served) -> None:
    status, content, headers = served.request("GET", JPEG)
    seen = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.int16)

    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert seen.shape == scene().shape
    assert np.abs(seen - scene()).mean() < 4
    smaller = served.request("GET", f"{JPEG}?width=100")[1]
    assert Image.open(io.BytesIO(smaller)).size == (160, 120)  # its own size is the next larger
    assert served.request("GET", "/api/cameras/front/frame?stamp_ns=1")[0] == 404
    assert served.request("GET", "/api/cameras/nobody/latest.jpg")[0] == 404


def test_a_viewer_waits_for_another_frame(served: Served) -> None:
    stamp = served.request("GET", f"{JPEG}?after_ns=0")[2]["X-Nvila-Stamp-Ns"]
    found: list[str] = []
    waiting = threading.Thread(
        target=lambda: found.append(served.request("GET", f"{JPEG}?after_ns={stamp}")[2]["X-Nvila-Stamp-Ns"])
    )
    waiting.start()
    time.sleep(0.3)
    assert not found
    newer = served.cameras["front"].show(scene(2))
    waiting.join()

    assert found == [str(newer)]


def test_many_viewers_share_one_picture(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many look, and however often: a camera's newest frame is encoded once in a while."""
    monkeypatch.setattr("nvila_ros.http.frames.FRAME_S", 3600.0)
    encoded: list[int] = []
    decode = served.server.answering.decode
    served.server.answering.decode = lambda frame: encoded.append(frame.stamp_ns) or decode(frame)  # type: ignore
    viewers = [threading.Thread(target=served.request, args=("GET", JPEG)) for _ in range(20)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join()
    served.cameras["front"].show(scene(3))
    served.request("GET", JPEG)

    assert len(encoded) == 1


def test_a_standing_query_is_added_seen_paused_and_removed(served: Served, events: Events) -> None:
    query = {"name": "a/b", "question": "x", "answer_type": "choices", "choices": ["yes", "no"], "rate_hz": 10}
    status, added, _ = served.request("POST", "/api/standing", query)
    assert (status, added["query"]["cameras"]) == (201, ["front", "left/rear"])
    assert served.request("POST", "/api/standing", query)[0] == 400
    assert served.request("POST", "/api/standing", query | {"replace": True})[0] == 201
    wait_until(lambda: events.of("event"), "its first answer is an event")
    event = events.of("event")[0]
    assert (event["name"], event["phase"], event["text"]) == ("a/b", "INSTANT", "yes")
    assert len(event["frames"]) == 2
    states = [each["state"] for each in events.of("standing") if each["state"]]
    assert any(state["probability"] == 1.0 for state in states)

    assert served.request("PATCH", "/api/standing/a/b", {"enabled": False})[0] == 200
    assert served.request("GET", "/api/standing")[1]["queries"][0]["query"]["enabled"] is False
    assert served.request("PATCH", "/api/standing/a/b", {"enabled": "no"})[0] == 400
    assert served.request("DELETE", "/api/standing/a%2Fb")[0] == 204
    assert served.request("DELETE", "/api/standing/a/b")[0] == 404
    wait_until(lambda: events.of("standing")[-1] == {"name": "a/b", "state": None}, "it is gone")


@pytest.mark.parametrize(
    "query",
    [{}, {"name": "x"}, {"name": "x", "question": "y", "rate": 1}, {"name": 1, "question": "y"},
     {"name": "x", "question": "y", "cameras": ["nobody"]}, {"name": "x", "question": "y", "rate_hz": None},
     {"name": "x", "question": "y", "answer_type": "json", "json_schema": "{"}, {"name": "x", "question": "y" * 5000},
     {"name": "x", "question": "y", "choices": [1, 2], "answer_type": "choices"}, {"name": "x", "question": ["y"]}],
)  # fmt: skip
def test_a_standing_query_that_breaks_a_rule_is_400(served: Served, query: Any) -> None:
    status, error, _ = served.request("POST", "/api/standing", query)
    assert (status, error["error"]["type"]) == (400, "invalid_request_error")


def test_a_schema_is_tried_before_it_stands(served: Served) -> None:
    query = {"name": "x", "question": "y", "answer_type": "json", "trigger": "on_change"}
    good, bad = '{"type":"object"}', '{"type":"nonsense"}'
    assert served.request("POST", "/api/standing", query | {"json_schema": bad})[0] == 400
    assert served.request("POST", "/api/standing", query | {"json_schema": good})[0] == 201


def test_who_comes_back_misses_nothing_that_is_kept(served: Served, events: Events) -> None:
    for text in ("one", "two", "three"):
        served.ask(text)
    wait_until(lambda: len(events.of("answer")) == 3, "all are told")
    first = next(number for kind, number, _ in events.found if kind == "answer")
    late = Events(served, Last_Event_ID=str(first))
    wait_until(lambda: len(late.of("answer")) == 2, "the other two are told again")
    late.close()

    assert [answer["text"] for answer in late.of("answer")] == ["two", "three"]


def test_who_comes_too_late_is_told_how_many_are_gone(served: Served) -> None:
    for number in range(NUM_KEPT + 5):
        served.server.door.feed.post("answer", lambda number=number: {"query_id": str(number)})
    late = Events(served, Last_Event_ID="1")
    wait_until(lambda: len(late.of("answer")) == NUM_KEPT, "those that are kept come")
    late.close()

    assert late.of("missed") == [{"num_missed": 4}]


def test_readiness_names_what_is_missing() -> None:
    with serving(load_fake, "front", "rear", model="fake") as served:
        status, ready, _ = served.request("GET", "/ready")
        assert (status, ready["missing"]) == (503, ["no frame of front has come", "no frame of rear has come"])
        assert served.request("GET", "/health")[0] == 200
        for camera in served.cameras.values():
            camera.show(scene())
        assert served.request("GET", "/ready")[:2] == (200, {"ready": True, "missing": []})


def test_metrics_count_what_happened(served: Served) -> None:
    served.ask("one two three")
    status, text, _ = served.request("GET", "/metrics")
    lines = text.decode().splitlines()

    assert status == 200
    assert 'nvila_requests_total{finished_reason="stop"} 1.0' in lines
    assert 'nvila_generation_tokens_total{kind="interactive"} 3.0' in lines
    assert 'nvila_time_to_first_token_seconds_count{kind="interactive"} 1.0' in lines
    assert 'nvila_frames_received_total{camera="front"} 1.0' in lines
    assert 'nvila_model_state{state="ready"} 1.0' in lines


def test_the_page_travels_compressed_to_whoever_takes_that(served: Served) -> None:
    num_bytes = 0
    for path in sorted(PAGE.iterdir()):
        status, plain, _ = served.request("GET", f"/{path.name}")
        _, packed, headers = served.request("GET", f"/{path.name}", Accept_Encoding="gzip")
        assert status == 200
        assert plain == path.read_bytes()
        assert headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(packed) == plain
        num_bytes += len(packed)

    assert num_bytes < 60_000
