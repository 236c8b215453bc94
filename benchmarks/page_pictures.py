"""Makes the pictures of the page that README and docs show: `python -m benchmarks.page_pictures`.

In: the synthetic world, served by `nvila serve` on a free port. Out: docs/images/page.png, the page after an answer
about eight frames and with two standing questions, and docs/images/page.webp, ten seconds of it. Needs the extra `test`
and the system's Chromium.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.http.page.browser import WatchedPage, find_chromium, open_browser
from tests.http.page.test_page_looks import serve

FOLDER = Path("docs/images")
SIZE = {"width": 1280, "height": 800}
ANIMATION_S = 10.0
ANIMATION_WIDTH = 960
STANDING = (("star", "Is there a star?"), ("circle", "Is there a circle?"))


def main() -> None:
    """Make both pictures and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder (default: %(default)s)")
    args = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        raise SystemExit("there is no chromium: sudo apt install chromium")
    still, moving = args.out / "page.png", args.out / "page.webp"
    with serve(0) as url, sync_playwright() as playwright, open_browser(playwright, chromium) as browser:
        watched = WatchedPage(browser.new_page(viewport=SIZE))
        watched.open(url)
        for name, question in STANDING:
            stand(watched.page, name, question)
        watched.page.wait_for_selector("#events button")
        moving.write_bytes(animation(record(watched)))
        watched.page.evaluate("document.activeElement.blur()")
        Image.open(io.BytesIO(watched.page.screenshot())).quantize(256).save(still, optimize=True)
    print(json.dumps({path.name: path.stat().st_size for path in (still, moving)}))


def stand(page: Any, name: str, question: str) -> None:
    """Add a standing question by the form."""
    page.click("#standing-open")
    page.fill("#standing-form [name=question]", question)
    page.fill("#standing-form [name=name]", name)
    page.click("#standing-form button[type=submit]")
    page.wait_for_selector(f".strip-row[data-name={name}]")


def record(watched: WatchedPage) -> list[tuple[float, bytes]]:
    """Ask two questions meanwhile, and return pictures with the seconds at which they were taken."""
    start_s = time.monotonic()
    plan = [
        (1.0, ("What do you see?", {"kind": "text"})),
        (5.0, ("Is there a star?", {"kind": "yes_no", "about": "last"})),
    ]
    taken: list[tuple[float, bytes]] = []
    while (now_s := time.monotonic() - start_s) < ANIMATION_S:
        if plan and now_s >= plan[0][0]:
            question, chosen = plan.pop(0)[1]
            watched.ask(question, **chosen)
        taken.append((now_s, watched.page.screenshot(type="jpeg", quality=90)))
    return [*taken, (ANIMATION_S, b"")]


def animation(taken: list[tuple[float, bytes]]) -> bytes:
    """Return pictures as an animated WebP, each shown as long as it was on the screen."""
    images = [Image.open(io.BytesIO(content)) for _, content in taken[:-1]]
    height = ANIMATION_WIDTH * SIZE["height"] // SIZE["width"]
    small = [image.resize((ANIMATION_WIDTH, height), Image.Resampling.LANCZOS) for image in images]
    spans_ms = [round(1000 * (after[0] - before[0])) for before, after in itertools.pairwise(taken)]
    file = io.BytesIO()
    small[0].save(file, "webp", save_all=True, append_images=small[1:], duration=spans_ms, loop=0, quality=60, method=4)
    return file.getvalue()


if __name__ == "__main__":
    main()
