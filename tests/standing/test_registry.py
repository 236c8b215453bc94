from __future__ import annotations

import dataclasses
import gc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import QueryError
from nvila_ros.standing.event import EndReason, Phase
from nvila_ros.standing.observation import Observation
from nvila_ros.standing.query import TICK_NS
from nvila_ros.standing.registry import EvaluationCounts
from nvila_ros.types import FinishReason
from tests.standing.obvious import S, answer_of, yes_no_answer
from tests.standing.registry_calls import ask_and_answer, counts, names, new_book, standing, tick


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
