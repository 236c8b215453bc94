"""Questions by hand: they stream, end, are canceled, and show what they were about."""

from __future__ import annotations

from tests.http.page.browser import WatchedPage
from tests.http.serving import Served, wait_until

WORDS = "one two three four five six seven eight nine ten"


def test_opens_without_an_error_and_asks_nobody_else(watched: WatchedPage, eyes: Served) -> None:
    watched.open(eyes.url)

    watched.ask("What do you see?")

    assert "star" in watched.answered()
    assert watched.hosts == {eyes.url.partition("://")[2]}
    assert watched.errors == []


def test_text_comes_piece_by_piece(watched: WatchedPage, talker: Served) -> None:
    watched.open(talker.url)
    watched.page.evaluate(
        """() => {
          window.seen = [];
          const keep = () => window.seen.push(document.querySelector("#answer .text")?.textContent ?? "");
          new MutationObserver(keep).observe(document.getElementById("answer"), { childList: true, subtree: true });
        }"""
    )

    watched.ask(WORDS)

    assert watched.answered() == WORDS
    seen = {text.rstrip("\u258d") for text in watched.page.evaluate("window.seen")} - {"", WORDS}
    assert len(seen) >= 3
    assert all(WORDS.startswith(text) for text in seen)


def test_escape_cancels(watched: WatchedPage, talker: Served) -> None:
    watched.open(talker.url)
    watched.ask(f"{WORDS} {WORDS} {WORDS} {WORDS}")
    watched.page.locator("#answer .text", has_text="three").wait_for()

    watched.page.keyboard.press("Escape")

    assert watched.page.wait_for_selector("#answer .why").inner_text() == "canceled"
    assert watched.page.is_visible("#send")
    assert not watched.page.is_visible("#cancel")
    canceled = "queries_canceled"
    wait_until(lambda: talker.request("GET", "/api/state")[1]["counters"][canceled] == 1, "the query is canceled")


def test_shows_probabilities_frames_and_times_of_an_answer(watched: WatchedPage, eyes: Served) -> None:
    watched.open(eyes.url)

    watched.ask("Is there a star?", kind="yes_no", about="last")

    assert watched.answered() == "yes"
    answer = eyes.request("GET", "/api/answers?limit=1")[1]["answers"][-1]
    shares = {name: f"{value:.2f}" for name, value in zip(answer["choices"], answer["probabilities"], strict=True)}
    rows = watched.page.locator(".bars tr")
    assert {row.locator("th").inner_text(): row.locator("td").last.inner_text() for row in rows.all()} == shares
    stamps = [button.get_attribute("data-stamp") for button in watched.page.locator("#film-frames button").all()]
    assert len(stamps) == 8
    assert stamps == [frame["stamp_ns"] for frame in answer["frames"]]
    watched.page.locator("#film-frames img").nth(7).wait_for()
    widths = [
        float(span.evaluate("each => parseFloat(each.style.width)"))
        for span in watched.page.locator(".stages-bar span").all()
    ]
    assert len(widths) == 5
    assert 50 < sum(widths) <= 100.01

    watched.page.locator("#film-frames button").first.click()
    watched.page.wait_for_selector("#live-again:not([hidden])")
    assert watched.page.inner_text("#caption").startswith("front · frame of ")


def test_text_of_others_is_text(watched: WatchedPage, talker: Served) -> None:
    watched.open(talker.url)

    watched.ask("<img src=x onerror=alert(1)>")

    assert watched.answered() == "<img src=x onerror=alert(1)>"
    assert watched.page.locator("#answer img").count() == 0
    assert watched.errors == []


def test_goes_on_about_the_same_frames(watched: WatchedPage, eyes: Served) -> None:
    watched.open(eyes.url)
    first = watched.request_of(lambda: watched.ask("What color is the star?", about="now"))
    watched.answered()
    watched.page.wait_for_selector("#follow-chip:not([hidden])")

    second = watched.request_of(lambda: watched.ask("Is there a star?", about="follow"))

    assert second["conversation"] == first["conversation"]
    assert [part["type"] for part in second["messages"][0]["content"]] == ["text"]
    watched.page.locator("#past li.follows").wait_for()


def test_asks_about_what_was_dragged_over(watched: WatchedPage, eyes: Served) -> None:
    watched.open(eyes.url)
    box = watched.page.locator("#axis").bounding_box()
    held = watched.page.locator("#axis .kept").first.bounding_box()
    assert box
    assert held
    y = held["y"] + 2
    watched.page.mouse.move(held["x"] + held["width"] * 0.2, y)
    watched.page.mouse.down()
    watched.page.mouse.move(held["x"] + held["width"] * 0.8, y, steps=3)
    watched.page.mouse.up()

    body = watched.request_of(lambda: watched.ask("Is there a star?"))

    url = body["messages"][0]["content"][1]["image_url"]["url"]
    values = dict(pair.split("=") for pair in url.partition("?")[2].split("&"))
    start_ns, end_ns = int(values["start_ns"]), int(values["end_ns"])
    assert url.startswith("nvila:camera/front?")
    assert start_ns < end_ns
    watched.answered()
    answer = eyes.request("GET", "/api/answers?limit=1")[1]["answers"][-1]
    assert answer["frames"]
    assert all(start_ns <= int(frame["stamp_ns"]) <= end_ns for frame in answer["frames"])


def test_an_answer_has_an_address(watched: WatchedPage, eyes: Served) -> None:
    status, answer = eyes.ask("Is there a star?", model="live", structured_outputs={"choice": ["yes", "no"]})
    assert status == 200

    watched.open(f"{eyes.url}/#answer={answer['nvila']['query_id']}")

    assert watched.answered() == answer["nvila"]["text"]
    assert watched.page.inner_text("#answer .question") == "Is there a star?"


def test_says_why_there_is_no_answer(watched: WatchedPage, eyes: Served) -> None:
    watched.open(eyes.url)
    watched.ask("What?", kind="json")
    watched.answered()
    watched.page.fill("[name=schema]", "{")

    watched.page.press("#question", "Enter")

    assert "JSON" in watched.page.wait_for_selector("#answer .wrong").inner_text()
