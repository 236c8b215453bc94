"""Questions that come before the model: refused with the time to ask again, or answered as soon as it is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.http.serving import WAIT_S, Served, scene, serving, wait_until
from tests.tiny import FakeModel, load_fake


class SlowLoad:
    """Loads the fake model once it may."""

    def __init__(self) -> None:
        self.may_load = threading.Event()

    def __call__(self, model: str, **settings: Any) -> FakeModel:
        assert self.may_load.wait(WAIT_S)
        return load_fake(model, **settings)


@pytest.fixture
def load() -> Iterator[SlowLoad]:
    made = SlowLoad()
    yield made
    made.may_load.set()


@pytest.fixture
def loading(load: SlowLoad) -> Iterator[Served]:
    with serving(load, waits_for_model=False, max_age_s=0.0) as served:
        try:
            served.cameras["front"].show(scene())
            yield served
        finally:
            load.may_load.set()


def test_a_question_without_a_deadline_is_told_to_ask_again(loading: Served, load: SlowLoad) -> None:
    body = {"model": "live", "messages": [{"role": "user", "content": "one two"}]}
    status, error, headers = loading.request("POST", "/v1/chat/completions", body)
    load.may_load.set()
    wait_until(lambda: loading.server.host.worker is not None, "the model is loaded")

    assert (status, error["error"]["code"]) == (503, "not_ready")
    assert int(headers["Retry-After"]) >= 1
    assert "deadline_s" in error["error"]["message"]
    assert loading.ask("one two", model="live")[0] == 200


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_question_with_a_deadline_waits_for_the_model(loading: Served, load: SlowLoad, is_stream: bool) -> None:
    found: list[Any] = []
    asking = threading.Thread(
        target=lambda: found.append(loading.ask("one two", model="live", deadline_s=WAIT_S, stream=is_stream))
    )
    asking.start()
    wait_until(lambda: loading.server.answering.scheduler.state().num_waiting, "the question waits")
    load.may_load.set()
    asking.join(WAIT_S)

    ((status, answer),) = found
    assert status == 200
    if is_stream:
        assert b'"content":" two"' in answer
        assert b'"model":"fake"' in answer
        assert b'"model":""' not in answer
        assert b"[DONE]" in answer
    else:
        assert (answer["nvila"]["text"], answer["nvila"]["model"]) == ("one two", "fake")


def test_a_deadline_that_passes_before_the_model_comes_is_503(loading: Served) -> None:
    status, error = loading.ask("one two", model="live", deadline_s=0.05)

    assert (status, error["error"]["code"]) == (503, "deadline")


def test_the_door_is_alive_and_not_ready_meanwhile(loading: Served) -> None:
    assert loading.request("GET", "/ready")[0] == 503
    assert loading.request("GET", "/health")[0] == 200
