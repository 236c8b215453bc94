"""The page for all: on a phone, by keyboard, in the dark, with a screen reader, and over a restart."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.http.page.browser import WatchedPage
from tests.http.serving import Served

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="the page's tests need axe-playwright-python")
ROOT = Path(__file__).parents[3]
PHONE = {"width": 375, "height": 812}
SERIOUS = {"serious", "critical"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(watched: WatchedPage, eyes: Served, scheme: str) -> None:
    page = watched.page
    page.emulate_media(color_scheme=scheme)
    watched.open(eyes.url)
    watched.ask("Is there a star?", kind="yes_no", about="last")
    watched.answered()

    found = [
        (f"{scheme} {where}", each["id"], each["nodes"][0]["html"])
        for where in _places(watched)
        for each in _serious(page)
    ]

    assert found == []


def _places(watched: WatchedPage) -> Iterator[str]:
    page = watched.page
    yield "page"
    page.click("#standing-open")
    yield "form"
    page.keyboard.press("Escape")
    page.click("#health-open")
    yield "health"
    page.click("#health-close")
    page.set_viewport_size(PHONE)
    yield "phone"


def _serious(page: object) -> list[dict[str, object]]:
    violations = axe.Axe().run(page).response["violations"]
    return [each for each in violations if each["impact"] in SERIOUS]


def test_is_usable_on_a_phone(watched: WatchedPage, eyes: Served) -> None:
    page = watched.page
    page.set_viewport_size(PHONE)
    watched.open(eyes.url)
    watched.ask("Is there a star?", kind="choices", about="last")
    watched.answered()

    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    small = page.evaluate(
        """() => [...document.querySelectorAll("button, .chips label, input[type=text]")]
          .filter((each) => each.checkVisibility() && each.getBoundingClientRect().height < 24)
          .map((each) => each.outerHTML)"""
    )
    assert small == []
    page.click("#standing-open")
    assert page.locator("#standing-form button[type=submit]").is_visible()


def test_the_keyboard_reaches_all(watched: WatchedPage, eyes: Served) -> None:
    page = watched.page
    watched.open(eyes.url)
    page.keyboard.press("/")
    page.keyboard.type("Is there a star?")
    page.keyboard.press("Enter")
    watched.answered()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("2")
    page.wait_for_selector("#cameras li:nth-child(2) button[aria-pressed=true]")

    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.closest('[id]')?.id"))

    assert {"question", "send", "ask", "film-frames", "past", "standing-open", "health-open", "cameras"} <= reached


@pytest.mark.slow
def test_goes_on_after_the_server_was_started_again(watched: WatchedPage) -> None:
    page = watched.page
    with serve(0) as url:
        watched.open(url)
        watched.ask("What do you see?")
        before = watched.answered()
        assert watched.errors == []
    page.wait_for_selector("#banner:not([hidden])")
    assert "Connection lost" in page.inner_text("#banner")
    assert page.inner_text("#answer .text") == before

    with serve(int(url.rpartition(":")[2])):
        page.wait_for_selector("#banner", state="hidden")
        watched.ask("How many objects are there?", kind="integer")
        page.wait_for_selector("#answer .bars")
        assert [row.inner_text() for row in page.locator(".past-question").all()] == [
            "How many objects are there?",
            "What do you see?",
        ]
        ran = page.evaluate(
            "[...document.querySelectorAll('#past button')].map((each) => each.dataset.key.split('/')[0])"
        )
        assert len(set(ran)) == 2


@contextmanager
def serve(port: int) -> Iterator[str]:
    """Serve the synthetic world by the command; yield its address once the model is ready."""
    command = [sys.executable, "-m", "nvila_ros.tools.cli", "serve", "world", "--port", str(port), "--threads", "1"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout is not None
            url = ""
            for line in process.stdout:
                url = url or "".join(re.findall(r"listening on (\S+)", line))
                if line.startswith("ready:"):
                    break
            yield url
        finally:
            process.terminate()
            process.communicate(timeout=60)
