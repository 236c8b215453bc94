"""A real browser, which looks at the page of the whole door; skipped with the reason where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from nvila_ros.serving.pipeline import load_model
from tests.http.page.browser import WatchedPage, find_chromium, open_browser
from tests.http.serving import Served, scene, serving
from tests.tiny import load_fake

sync_api = pytest.importorskip("playwright.sync_api", reason="the page's tests need playwright")
STAR, SQUARE = 3, 0
"""Scenes of the synthetic world: an orange star alone, and a black square alone."""


@pytest.fixture(scope="session")
def browser() -> Iterator[sync_api.Browser]:
    chromium = find_chromium()
    if not chromium:
        pytest.skip("there is no chromium: sudo apt install chromium")
    with sync_api.sync_playwright() as playwright, open_browser(playwright, chromium) as browser:
        yield browser


@pytest.fixture
def watched(browser: sync_api.Browser) -> Iterator[WatchedPage]:
    """A window of the browser that remembers what went wrong in it."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    try:
        yield WatchedPage(context.new_page())
    finally:
        context.close()


@pytest.fixture(scope="module")
def eyes() -> Iterator[Served]:
    """The real model with two cameras, the first of which has seen a star for three seconds."""
    with serving(load_model, "front", "rear", max_age_s=0.0, threads=1) as served:
        newest_ns = served.cameras["rear"].show(scene(SQUARE))
        for age_ns in range(3_000_000_000, -1, -200_000_000):
            served.cameras["front"].show(scene(STAR), newest_ns - age_ns)
        yield served


@pytest.fixture(scope="module")
def talker() -> Iterator[Served]:
    """A fake model that says the words of the question, 50 ms each."""
    with serving(load_fake, model="fake:0.05", max_age_s=0.0) as served:
        served.cameras["front"].show(scene(STAR))
        yield served
