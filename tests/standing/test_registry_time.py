"""What silence, and a clock or stamps that jump back, make of standing queries."""

from __future__ import annotations

import pytest

from nvila_ros.standing.event import EndReason, Phase
from nvila_ros.video.buffer import MAX_DISORDER_NS
from tests.standing.obvious import S, yes_no_answer
from tests.standing.registry_calls import ask_and_answer, counts, names, new_book, standing, tick


@pytest.mark.parametrize("stamp_s", [None, 1.0], ids=["no answers", "answers about one frame"])
def test_open_event_ends_stale_without_new_answers(stamp_s: float | None) -> None:
    book = new_book(standing(stale_s=5))
    (begin,) = ask_and_answer(book, 1)
    for second in (2, 3, 4, 5) if stamp_s else ():
        assert ask_and_answer(book, second, stamp_s=stamp_s) == []
    assert book.expire(round(5.9 * S)) == []

    (end,) = book.expire(6 * S)

    assert (end.event_id, end.end_reason, end.end_stamp_ns) == (begin.event_id, EndReason.STALE, S)
    assert book.states()[0].answer is None


def test_votes_from_before_a_silence_do_not_count() -> None:
    book = new_book(standing(stale_s=5, debounce_n=2, debounce_m=2))
    ask_and_answer(book, 1)

    assert ask_and_answer(book, 20) == []


@pytest.mark.parametrize("trigger", ["rising", "on_change", "every"])
def test_frame_of_a_camera_that_stalls_proves_nothing_twice(trigger: str) -> None:
    book = new_book(standing(stale_s=2, trigger=trigger))
    first = ask_and_answer(book, 1)

    later = [event for second in range(2, 40) for event in ask_and_answer(book, second, stamp_s=1)]

    assert len(first) == 1
    assert [event.end_reason for event in later] == [EndReason.STALE] * (trigger == "rising")
    assert counts(book).repeated == 38


def test_stamps_that_restarted_while_nothing_was_known_begin_anew() -> None:
    book = new_book(standing(stale_s=2, cooldown_s=100))
    ask_and_answer(book, 500)
    book.expire(600 * S)

    (begin,) = ask_and_answer(book, 601, stamp_s=1)

    assert (begin.phase, begin.begin_stamp_ns) == (Phase.BEGIN, S)


def test_clock_that_jumps_back_ends_events_and_asks_at_once() -> None:
    book = new_book(standing())
    (begin,) = ask_and_answer(book, 100)
    ((open_asking,),) = tick(book, 101)

    (end,) = book.expire(3 * S)

    assert (end.event_id, end.end_reason) == (begin.event_id, EndReason.TIME_JUMP)
    assert names(tick(book, 3)) == [["door"]]
    assert book.observe(open_asking, yes_no_answer(open_asking.query, 1, 101 * S), 4 * S) == []
    assert counts(book).missed == 1


def test_clock_that_is_set_back_a_little_forgets_nothing() -> None:
    book = new_book(standing())
    ask_and_answer(book, 100)

    assert book.expire(round(99.5 * S)) == []
    assert book.due(round(99.5 * S)) == []


@pytest.mark.parametrize("back_ns", [MAX_DISORDER_NS, MAX_DISORDER_NS + 1])
def test_jump_back_is_more_than_the_disorder_of_transports(back_ns: int) -> None:
    """Of the clock, and of the stamps while the clock goes on; the buffer of frames has the same bound."""
    by_clock, by_stamps = new_book(standing()), new_book(standing())
    for book in (by_clock, by_stamps):
        ask_and_answer(book, 100)

    events = by_clock.expire(100 * S - back_ns)
    ((evaluation,),) = tick(by_stamps, 101)
    events_of_stamps = by_stamps.observe(evaluation, yes_no_answer(evaluation.query, 1, 100 * S - back_ns), 101 * S)

    is_jump = back_ns > MAX_DISORDER_NS
    assert [event.end_reason for event in events] == [EndReason.TIME_JUMP] * is_jump
    assert [event.end_reason for event in events_of_stamps] == [EndReason.TIME_JUMP, EndReason.NONE] * is_jump
    assert counts(by_stamps).repeated == (not is_jump)


def test_steps_back_of_the_clock_add_up_to_a_jump() -> None:
    book = new_book(standing())
    ask_and_answer(book, 100)

    assert book.expire(round(99.4 * S)) == []
    assert [event.end_reason for event in book.expire(round(98.8 * S))] == [EndReason.TIME_JUMP]


@pytest.mark.parametrize(("now_s", "reason"), [(90, EndReason.TIME_JUMP), (120, EndReason.STALE)])
def test_events_of_all_queries_end_together_in_the_order_of_the_queries(now_s: int, reason: EndReason) -> None:
    book = new_book(*(standing(name, stale_s=5) for name in "abc"))
    begins = [
        event
        for (evaluation,) in zip(*tick(book, 100), strict=True)
        for event in book.observe(evaluation, yes_no_answer(evaluation.query, 1, 100 * S), 100 * S)
    ]

    ends = book.expire(now_s * S)

    assert [(event.query.name, event.end_reason) for event in ends] == [(name, reason) for name in "abc"]
    assert [event.event_id for event in ends] == [event.event_id for event in begins]
    assert len({event.event_id for event in begins}) == 3


def test_answer_that_shows_a_jump_hides_no_event_of_another_query() -> None:
    book = new_book(standing("brief", stale_s=2), standing("long", stale_s=100))
    for evaluation in (evaluation for group in tick(book, 1) for evaluation in group):
        book.observe(evaluation, yes_no_answer(evaluation.query, 1, 500 * S), S)
    ((_, long),) = tick(book, 2)

    events = book.observe(long, yes_no_answer(long.query, 1, 7 * S), 10 * S)

    assert [(event.query.name, event.phase, event.end_reason) for event in events] == [
        ("brief", Phase.END, EndReason.STALE),
        ("long", Phase.END, EndReason.TIME_JUMP),
        ("long", Phase.BEGIN, EndReason.NONE),
    ]


def test_stamps_that_jump_back_begin_anew() -> None:
    book = new_book(standing())
    (begin,) = ask_and_answer(book, 100)

    end, again = ask_and_answer(book, 101, stamp_s=2)

    assert (end.event_id, end.end_reason, end.end_stamp_ns) == (begin.event_id, EndReason.TIME_JUMP, 100 * S)
    assert (again.phase, again.begin_stamp_ns) == (Phase.BEGIN, 2 * S)
    assert again.event_id != begin.event_id


@pytest.mark.parametrize("is_added", [True, False])
def test_query_is_due_at_once_also_where_a_simulated_clock_stands_at_zero(is_added: bool) -> None:
    book = new_book(standing())
    if not is_added:
        assert names(tick(book, 0)) == [["door"]]
        book.enable("door", False)
        book.enable("door", True)

    assert names(tick(book, 0)) == [["door"]]


def test_frame_that_was_answered_about_proves_nothing_anew_once_its_query_is_enabled_again() -> None:
    book = new_book(standing())
    ask_and_answer(book, 1)
    book.enable("door", False)
    book.enable("door", True)

    assert ask_and_answer(book, 2, stamp_s=1) == []
    assert counts(book).repeated == 1


def test_due_refuses_a_clock_that_expire_was_not_told_of() -> None:
    book = new_book()
    book.expire(100 * S)

    with pytest.raises(AssertionError, match="expire comes before due"):
        book.due(1)
