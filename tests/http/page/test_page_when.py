"""When something happened, on the page: an interval in words, and the frames that lie in it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from nvila_ros.serving.pipeline import load_model
from nvila_ros.types import NS_PER_S
from nvila_ros.world.rendering import render
from nvila_ros.world.timed_events import eval_timed_case
from tests.http.page.browser import WatchedPage
from tests.http.serving import Served, serving

CASE = eval_timed_case("there", 2)
"""A thing that is there for a part of a clip of eight frames."""


@pytest.fixture
def witness() -> Iterator[Served]:
    """The model that tells when, and a camera that has seen the clip."""
    with serving(load_model, model="nvila-tiny-when", max_age_s=0.0, threads=1) as served:
        newest_ns = time.time_ns()
        for time_s in CASE.times_s:
            stamp_ns = newest_ns - int((CASE.times_s[-1] - time_s) * NS_PER_S)
            served.cameras["front"].show(render(CASE.scene, time_s, 160, 120), stamp_ns)
        yield served


def test_says_when_and_marks_the_frames(watched: WatchedPage, witness: Served) -> None:
    watched.open(witness.url)

    watched.page.locator("#ask label:has([name=kind][value=when])").click()
    assert watched.page.is_checked("#ask [name=about][value=last]")  # one frame has no time
    watched.page.fill("#ask [name=window]", "6")
    watched.ask(CASE.question.text)
    text = watched.answered()

    answer = witness.request("GET", "/api/answers?limit=1")[1]["answers"][-1]
    (found, *_) = json.loads(answer["text"])["intervals"]
    stamps = [int(frame["stamp_ns"]) for frame in answer["frames"]]
    inside = [stamp for stamp in stamps if found["start_ns"] - 10**6 <= stamp <= found["end_ns"] + 10**6]
    before = [(stamps[-1] - found[key]) / NS_PER_S for key in ("start_ns", "end_ns")]
    assert text.startswith(f"\u2212{before[0]:.2f} s")
    assert 0 < len(inside) < len(stamps)
    marked = watched.page.locator("#film-frames li.inside button")
    assert [int(button.get_attribute("data-stamp")) for button in marked.all()] == inside
    assert watched.page.locator(".bars tr.won th").inner_text() == "yes"
    assert watched.errors == []


def test_says_that_it_does_not_happen(watched: WatchedPage, witness: Served) -> None:
    watched.open(witness.url)

    watched.ask("Is there a purple ring?", kind="when")

    assert watched.answered() == "it does not happen"
    assert watched.page.locator("#film-frames li.inside").count() == 0
