from __future__ import annotations

import dataclasses
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import QueryError
from nvila_ros.standing.event import EndReason, Event, Phase
from nvila_ros.standing.observation import Observation
from nvila_ros.standing.query import TICK_NS, StandingQuery
from nvila_ros.standing.registry import Evaluation, EvaluationCounts, QueryRegistry
from nvila_ros.types import FinishReason
from nvila_ros.video.buffer import MAX_DISORDER_NS
from tests.standing.obvious import S, answer_of, yes_no_answer


def standing(name: str = "door", **changes: Any) -> StandingQuery:
    return StandingQuery(**{"name": name, "question": "Is it?", "trigger": "rising"} | changes)


def new_book(*queries: StandingQuery, capacity: int = 8) -> QueryRegistry:
    book = QueryRegistry(capacity)
    for query in queries:
        book.add(query)
    return book


def tick(book: QueryRegistry, seconds: float) -> list[list[Evaluation]]:
    now_ns = round(seconds * S)
    assert book.expire(now_ns) == []
    return book.due(now_ns)


def names(groups: list[list[Evaluation]]) -> list[list[str]]:
    return [[evaluation.query.name for evaluation in group] for group in groups]


def ask_and_answer(book: QueryRegistry, seconds: float, yes: float = 1.0, stamp_s: float | None = None) -> list[Event]:
    now_ns = round(seconds * S)
    events = book.expire(now_ns)
    ((evaluation,),) = book.due(now_ns)
    stamp_ns = round((seconds if stamp_s is None else stamp_s) * S)
    return events + book.observe(evaluation, yes_no_answer(evaluation.query, yes, stamp_ns), now_ns)


def counts(book: QueryRegistry) -> EvaluationCounts:
    (state,) = book.states()
    return state.counts


def test_queries_of_one_clip_are_handed_out_together() -> None:
    book = new_book(
        standing("a"), standing("b", num_frames=2), standing("c"), standing("d", cameras=("rear",)), standing("e")
    )

    assert names(tick(book, 1)) == [["a", "c", "e"], ["b"], ["d"]]


def test_higher_priority_is_handed_out_first() -> None:
    book = new_book(standing("a"), standing("b", window_s=1.0, priority=2), standing("c", priority=1))

    assert names(tick(book, 1)) == [["b"], ["c", "a"]]


def test_rates_meet_on_common_ticks_whenever_queries_were_added() -> None:
    book = new_book(standing("slow", rate_hz=0.5))
    tick(book, 0.7)
    book.add(standing("fast", rate_hz=1.0))

    due = {second: names(tick(book, second)) for second in (0.9, 1.0, 1.5, 2.03, 2.9, 3.0, 4.4)}

    assert due == {
        0.9: [["fast"]],
        1.0: [["fast"]],
        1.5: [],
        2.03: [["slow", "fast"]],
        2.9: [],
        3.0: [["fast"]],
        4.4: [["slow", "fast"]],
    }


def test_like_rates_have_one_period() -> None:
    assert standing(rate_hz=1.05).period_ns == standing(rate_hz=1.0).period_ns == S
    assert standing(rate_hz=10.0).period_ns == TICK_NS


@given(st.floats(0.001, 10.0))
def test_no_period_is_shorter_than_the_rate_allows(rate_hz: float) -> None:
    period_ns = standing(rate_hz=rate_hz, stale_s=86400).period_ns

    assert period_ns % TICK_NS == 0
    assert S / rate_hz - 1 <= period_ns < S / rate_hz + TICK_NS + 1


def test_late_ticks_lose_askings_and_pile_none_up() -> None:
    book = new_book(standing())
    tick(book, 1)

    assert names(tick(book, 100.5)) == [["door"]]
    assert tick(book, 100.9) == []


def test_asking_again_before_the_answer_is_counted_as_skipped() -> None:
    book = new_book(standing())
    ((first,),) = tick(book, 1)
    ((second,),) = tick(book, 2)
    book.observe(first, answer_of(first.query, "", None, reason=FinishReason.REPLACED), 2 * S)
    book.observe(second, yes_no_answer(second.query, 0, 2 * S), 2 * S)
    tick(book, 3)

    assert counts(book) == EvaluationCounts(asked=3, answered=1, missed=1, skipped=1)


def test_answer_that_is_overtaken_does_not_count() -> None:
    book = new_book(standing())
    ((first,),) = tick(book, 1)
    ((second,),) = tick(book, 2)

    (begin,) = book.observe(second, yes_no_answer(second.query, 1, 2 * S), 2 * S)
    assert book.observe(first, yes_no_answer(first.query, 0, S), 3 * S) == []

    assert counts(book).missed == 1
    assert book.states()[0].open_event is begin


def test_answers_about_the_same_frame_count_once() -> None:
    book = new_book(standing(debounce_n=2, debounce_m=2))

    assert ask_and_answer(book, 1, stamp_s=1) == ask_and_answer(book, 2, stamp_s=1) == []
    assert [e.phase for e in ask_and_answer(book, 3, stamp_s=3)] == [Phase.BEGIN]
    assert counts(book).repeated == 1


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


def test_last_outcome_is_known() -> None:
    book = new_book(standing())
    ((evaluation,),) = tick(book, 1)

    late = answer_of(evaluation.query, "", None, reason=FinishReason.DEADLINE)
    book.observe(evaluation, dataclasses.replace(late, error="too late"), S)

    (state,) = book.states()
    assert (state.last_reason, state.last_error, state.answer) == (FinishReason.DEADLINE, "too late", None)


def test_last_answer_that_counted_is_known_beside_the_last_outcome() -> None:
    book = new_book(standing())
    ask_and_answer(book, 1)
    ((evaluation,),) = tick(book, 2)
    book.observe(evaluation, answer_of(evaluation.query, "", None, reason=FinishReason.DEADLINE), 2 * S)

    (state,) = book.states()
    assert state.answer is not None
    assert state.answer.frames[-1].stamp_ns == S
    assert state.last_reason is FinishReason.DEADLINE


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


def test_query_that_was_never_asked_has_no_outcome() -> None:
    book = new_book(standing())

    (state,) = book.states()
    assert (state.last_reason, state.last_error, state.answer, state.open_event) == (
        FinishReason.UNKNOWN,
        "",
        None,
        None,
    )
    ((first,),), ((second,),) = tick(book, 1), tick(book, 2)
    assert (first.number, second.number) == (1, 2)


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


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda book: book.remove("door"), EndReason.REMOVED),
        (lambda book: book.add(standing(), is_replacing=True), EndReason.REMOVED),
        (lambda book: book.enable("door", False), EndReason.DISABLED),
    ],
    ids=["remove", "replace", "disable"],
)
def test_open_event_ends_with_what_ends_its_query(act: Any, reason: EndReason) -> None:
    book = new_book(standing())
    (begin,) = ask_and_answer(book, 1)

    (end,) = act(book)

    assert (end.event_id, end.end_reason) == (begin.event_id, reason)


def test_answer_to_a_removed_query_says_nothing_about_the_next_of_that_name() -> None:
    book = new_book(standing())
    ((evaluation,),) = tick(book, 1)
    book.add(standing(question="Is it now?"), is_replacing=True)
    tick(book, 1)

    assert book.observe(evaluation, yes_no_answer(evaluation.query, 1, S), 2 * S) == []
    assert counts(book) == EvaluationCounts(asked=1)


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


def test_disabled_query_is_not_asked_and_enabled_again_at_once() -> None:
    book = new_book(standing(enabled=False))
    assert tick(book, 1) == []

    book.enable("door", True)

    assert names(tick(book, 1.05)) == [["door"]]
    assert book.states()[0].query.enabled


def test_book_refuses_what_it_cannot_hold_or_find() -> None:
    book = new_book(standing("door"), standing("window"), capacity=2)

    with pytest.raises(QueryError, match="'door' stands already"):
        book.add(standing("door"))
    with pytest.raises(QueryError, match="max_standing = 2"):
        book.add(standing("gate"))
    with pytest.raises(QueryError, match=r"'windows'; did you mean one of \['window'\]"):
        book.remove("windows")
    with pytest.raises(QueryError, match="no standing query"):
        book.enable("gate", True)
    book.add(standing("door", question="Is it now?"), is_replacing=True)


def test_due_refuses_a_clock_that_expire_was_not_told_of() -> None:
    book = new_book()
    book.expire(100 * S)

    with pytest.raises(AssertionError, match="expire comes before due"):
        book.due(1)


def test_memory_does_not_grow_with_answers() -> None:
    query = standing(answer_type="text", trigger="on_change", debounce_n=60, debounce_m=64)
    book = new_book(query)
    gc.collect()
    others = num_readings()  # of other tests
    for second in range(1, 1001):
        now_ns = second * S
        book.expire(now_ns)
        ((evaluation,),) = book.due(now_ns)
        book.observe(evaluation, answer_of(query, str(second), now_ns), now_ns)

    assert num_readings() - others <= 64 + 2


def num_readings() -> int:
    return sum(type(held) is Observation for held in gc.get_objects())  # others may warn when asked what they are
