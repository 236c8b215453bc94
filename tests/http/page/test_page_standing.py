"""Standing queries: added by the form, drawn as a strip, with the events that they publish; paused, removed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.http.page.browser import WatchedPage
from tests.http.page.conftest import SQUARE, STAR
from tests.http.serving import Served, scene, wait_until


@contextmanager
def showing(served: Served, index: int) -> Iterator[None]:
    """Let the first camera see a scene, ten times a second."""
    stop, image = threading.Event(), scene(index)

    def show() -> None:
        while not stop.wait(0.1):
            served.cameras["front"].show(image)

    thread = threading.Thread(target=show)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_shows_the_event_of_a_query_that_was_added(watched: WatchedPage, eyes: Served) -> None:
    page = watched.page
    watched.open(eyes.url)
    page.click("#standing-open")
    page.fill("#standing-form [name=question]", "Is there a star?")
    assert page.input_value("#standing-form [name=name]") == "star"
    page.fill("#standing-form [name=rate_hz]", "5")
    page.click("#standing-form button[type=submit]")
    row = page.locator(".strip-row[data-name=star]")

    with showing(eyes, STAR):
        page.wait_for_selector("#events .sign.begin")
        page.wait_for_selector(".strip-row[data-name=star] .event.begin")
        assert row.locator(".row-value").inner_text().startswith("\u25cf yes")
    with showing(eyes, SQUARE):
        page.wait_for_selector("#events .sign.end")
        assert row.locator(".curve").get_attribute("d")

    page.locator("#events button").last.click()
    assert page.inner_text("#answer .text") == "yes"
    page.wait_for_selector("#live-again:not([hidden])")

    row.get_by_role("button", name="Pause star").click()
    page.wait_for_selector(".strip-row.paused")
    assert [each["query"]["enabled"] for each in eyes.request("GET", "/api/standing")[1]["queries"]] == [False]
    row.get_by_role("button", name="Remove star").click()
    wait_until(lambda: not eyes.request("GET", "/api/standing")[1]["queries"], "the query is removed")
    page.wait_for_selector(".strip-row", state="detached")
    assert watched.errors == []


def test_says_what_is_wrong_with_a_query(watched: WatchedPage, eyes: Served) -> None:
    page = watched.page
    watched.open(eyes.url)
    page.click("#standing-open")
    page.fill("#standing-form [name=question]", "Which color?")
    page.select_option("#standing-form [name=answer_type]", "choices")

    page.click("#standing-form button[type=submit]")

    assert "choices" in page.wait_for_selector("#standing-error:not([hidden])").inner_text()
    assert page.is_visible("#standing-dialog")
