"""A node whose model is behind another node's door: the same answers, streams, cancels, and a model to fall back on."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

from benchmarks.remote import FORMS, compare, compared_cases
from nvila_ros.remote import model as remote_model
from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from tests.http.serving import Served, picture, scene, serving, wait_until
from tests.remote.asking_remotely import ask, remote
from tests.tiny import load_fake


@pytest.fixture(scope="module")
def here() -> VisionLanguageModel:
    return load_model("nvila-tiny", threads=1)


@pytest.fixture(scope="module")
def door() -> Iterator[Served]:
    with serving(load_model, max_age_s=0.0, threads=1) as served:
        served.cameras["front"].show(scene())
        yield served


def test_answers_are_those_of_the_model_here_token_for_token(here: VisionLanguageModel, door: Served) -> None:
    there = remote(f"{door.url}/v1", jpeg_quality=0, max_side=0)

    found = compare(here, there, list(compared_cases(2 * len(FORMS))))

    assert set(found) == set(FORMS)
    assert [fault for rows in found.values() for fault, _, _ in rows if fault] == []


def test_yes_and_no_by_tokens_are_those_of_the_model_here(here: VisionLanguageModel, door: Served) -> None:
    """The door takes vLLM's fields too, and reports each spelling by itself."""
    there = remote(f"{door.url}/v1", jpeg_quality=0, max_side=0, dialect="vllm")
    frames = next(case for case in compared_cases(2) if case.form == "yes_no").frames
    expected = ask(here, "Is there a star?", frames, answer_type="yes_no")  # type: ignore[arg-type]

    answer = ask(there, "Is there a star?", frames, answer_type="yes_no")

    assert answer.text == expected.text
    assert answer.probabilities == pytest.approx(expected.probabilities, abs=1e-4)


def test_a_node_asks_another_about_its_own_cameras(door: Served) -> None:
    values = {"backend": "remote", "remote_url": door.url, "remote_jpeg_quality": 0}
    with serving(load_model, "rear", max_age_s=0.0, **values) as served:
        stamp_ns = served.cameras["rear"].show(scene(3))
        door.cameras["front"].show(scene(3))
        status, answer = served.ask("What do you see?", model="live")
        _, expected = door.ask([picture(scene(3)), {"type": "text", "text": "What do you see?"}])
        _, models, _ = served.request("GET", "/v1/models")

    assert status == 200
    assert answer["choices"][0]["message"]["content"] == expected["choices"][0]["message"]["content"]
    assert answer["nvila"]["frames"] == [{"camera": "rear", "stamp_ns": str(stamp_ns)}]
    assert (answer["nvila"]["model"], answer["nvila"]["backend"]) == ("nvila-tiny", "remote")
    assert answer["usage"]["completion_tokens"] == expected["usage"]["completion_tokens"]
    assert [model["id"] for model in models["data"]] == ["nvila-tiny", "live"]


def test_a_client_that_leaves_stops_the_far_model() -> None:
    near_values = {"backend": "remote", "max_age_s": 0.0}
    with (
        serving(load_fake, model="fake:0.02", max_age_s=0.0) as far,
        serving(load_fake, remote_url=far.url, **near_values) as near,
    ):
        connection = http.client.HTTPConnection(*near.address, timeout=60)
        question = " ".join(["word"] * 400)
        body = {"messages": [{"role": "user", "content": question}], "stream": True, "max_tokens": 400}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert b"word" in response.readline() + response.readline() + response.readline()
        response.close()
        connection.close()
        ended = far.server.answering.scheduler
        wait_until(lambda: ended.state().num_ended.get("canceled", 0), "the far question is canceled")


def test_a_local_model_answers_while_the_server_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_model, "AWAY_S", 0.0)
    with serving(load_fake, model="fake", max_age_s=0.0) as far:
        values = {"backend": "remote", "remote_url": far.url, "remote_fallback": "fake", "remote_retries": 0}
        with serving(load_fake, max_age_s=0.0, **values) as near:
            _, first = near.ask("one two")
            far.server.door.close()
            _, second = near.ask("one two")

    assert [(a["nvila"]["backend"], a["nvila"]["text"]) for a in (first, second)] == [
        ("remote", "one two"),
        ("numpy", "one two"),
    ]
