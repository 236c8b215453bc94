"""Chromium, and a window of it that remembers errors and where its requests went."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import SplitResult, urlsplit

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WAIT_MS = 45_000


def find_chromium() -> str | None:
    """Return the path of a browser of this machine, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def open_browser(playwright: Any, path: str) -> AbstractContextManager[Any]:
    """Return the browser, which closes at the end of the block."""
    return playwright.chromium.launch(executable_path=path, args=list(FLAGS))


class WatchedPage:
    """One window.

    Attributes:
        page: of playwright.
        errors: what the console and scripts reported.
        hosts: whom its requests went to.
    """

    def __init__(self, page: Any) -> None:
        self.page, self.errors, self.hosts = page, list[str](), set[str]()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: self._hear(message.type, message.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._see(urlsplit(request.url)))

    def open(self, url: str) -> None:
        """Open the page, and wait until it shows a picture and the model."""
        self.page.goto(url)
        self.page.wait_for_selector("#picture:not([hidden])")
        self.page.wait_for_selector("#model .dot[data-state=ready]")

    def ask(self, question: str, **chosen: str) -> None:
        """Ask by hand, with these chips chosen."""
        for name, value in chosen.items():
            self.page.locator(f"#ask label:has([name={name}][value={value}])").click()
        self.page.fill("#question", question)
        self.page.press("#question", "Enter")

    def answered(self) -> str:
        """Wait for the end of an answer and return its text."""
        self.page.wait_for_selector("#answer .facts")
        return str(self.page.inner_text("#answer .text"))

    def request_of(self, act: Callable[[], None]) -> dict[str, Any]:
        """Return the body of the question that is sent meanwhile."""
        with self.page.expect_request("**/v1/chat/completions") as sent:
            act()
        return dict(sent.value.post_data_json)

    def _see(self, url: SplitResult) -> None:
        if url.scheme != "blob":  # which is in the page itself
            self.hosts.add(url.netloc)

    def _hear(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.errors.append(text)
