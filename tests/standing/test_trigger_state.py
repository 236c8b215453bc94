from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.standing.event import EndReason, Event, Phase
from nvila_ros.standing.observation import read_answer
from nvila_ros.standing.query import StandingQuery
from nvila_ros.standing.trigger_state import TriggerState
from tests.standing.obvious import S, answer_of, expect, told, yes_no_answer
from tests.strategies import lists_of_all_sizes

FORCED = [EndReason.STALE, EndReason.TIME_JUMP, EndReason.REMOVED, EndReason.DISABLED]
PROBABILITIES = st.sampled_from([0.0, 0.2, 0.39, 0.4, 0.5, 0.59, 0.6, 0.9, 1.0])
GAPS = st.integers(1, 5)


def standing(**changes: Any) -> StandingQuery:
    return StandingQuery(**{"name": "door", "question": "Is the door open?", "trigger": "rising"} | changes)


def new_trigger(query: StandingQuery) -> TriggerState:
    return TriggerState(query, map("e{}".format, itertools.count(1)).__next__)


def push_yes(
    trigger: TriggerState, query: StandingQuery, seconds: Sequence[float], yes: Sequence[float]
) -> list[Event]:
    events = []
    for second, probability in zip(seconds, yes, strict=True):
        observation = read_answer(query, yes_no_answer(query, probability, round(second * S)))
        assert observation is not None
        events += trigger.push(observation)
    return events


def tell(yes: Sequence[float], **changes: Any) -> list[tuple[str, int, int]]:
    """Ask once a second; return phase, begin and confirmation in seconds."""
    query = standing(**changes)
    events = push_yes(new_trigger(query), query, range(1, len(yes) + 1), yes)
    return [(e.phase.name, e.begin_stamp_ns // S, e.confirmed_stamp_ns // S) for e in events]


def test_rising_begins_and_ends_with_the_condition() -> None:
    assert tell([0, 1, 1, 0, 0]) == [("BEGIN", 2, 2), ("END", 2, 4)]


def test_rising_begins_where_the_condition_holds_from_the_start() -> None:
    assert tell([1]) == [("BEGIN", 1, 1)]


def test_falling_needs_to_have_seen_the_condition_hold() -> None:
    assert tell([0, 0], trigger="falling") == []
    assert tell([0, 1, 0, 1], trigger="falling") == [("BEGIN", 3, 3), ("END", 3, 4)]


def test_target_no_rises_where_falling_does_not() -> None:
    assert tell([0, 1], target="no") == [("BEGIN", 1, 1), ("END", 1, 2)]


def test_debounce_confirms_late_and_begins_with_the_first_that_agreed() -> None:
    assert tell([0, 1, 0, 1, 1], debounce_n=3, debounce_m=4) == [("BEGIN", 2, 5)]


def test_votes_for_what_is_over_do_not_begin_it_again() -> None:
    events = tell([1, 1, 0, 0, 1], debounce_n=2, debounce_m=5)

    assert events == [("BEGIN", 1, 2), ("END", 1, 4)]


def test_hysteresis_keeps_the_side_between_its_limits() -> None:
    assert tell([0.5, 0.6, 0.45, 0.39], threshold=0.6, hysteresis=0.2) == [("BEGIN", 2, 2), ("END", 2, 4)]


def test_begin_within_the_cooldown_is_told_when_it_is_over() -> None:
    assert tell([1, 0, 1, 1, 1, 1], cooldown_s=4) == [("BEGIN", 1, 1), ("END", 1, 2), ("BEGIN", 3, 5)]


def test_begin_that_is_over_before_the_cooldown_is_never_told() -> None:
    assert tell([1, 0, 1, 0, 0, 0, 0], cooldown_s=5) == [("BEGIN", 1, 1), ("END", 1, 2)]


def test_integer_rises_where_the_number_is_reached() -> None:
    query = standing(answer_type="integer", minimum=0, maximum=9, target="3")
    trigger = new_trigger(query)
    events = []
    for second, text in enumerate(["2", "3", "7", "1"], start=1):
        observation = read_answer(query, answer_of(query, text, second * S))
        assert observation is not None
        events += trigger.push(observation)

    assert [(e.phase.name, e.answer.text) for e in events] == [("BEGIN", "3"), ("END", "1")]


def test_on_change_tells_the_first_answer_and_each_change_with_what_was_before() -> None:
    query = standing(answer_type="text", trigger="on_change")
    trigger = new_trigger(query)
    events = []
    for second, text in enumerate(["A red cube.", "a red  cube", "A ball."], start=1):
        observation = read_answer(query, answer_of(query, text, second * S))
        assert observation is not None
        events += trigger.push(observation)

    assert [(e.phase, e.previous, e.answer.text) for e in events] == [
        (Phase.INSTANT, "", "A red cube."),
        (Phase.INSTANT, "A red cube.", "A ball."),
    ]


def test_empty_text_is_an_answer_like_any_other() -> None:
    query = standing(answer_type="text", trigger="on_change")
    trigger = new_trigger(query)
    events = []
    for second, text in enumerate(["", "", "A ball."], start=1):
        observation = read_answer(query, answer_of(query, text, second * S))
        assert observation is not None
        events += trigger.push(observation)

    assert [(e.begin_stamp_ns // S, e.answer.text) for e in events] == [(1, ""), (3, "A ball.")]


def test_debounced_event_ends_with_the_first_answer_that_agreed() -> None:
    query = standing(debounce_n=2, debounce_m=3)
    trigger = new_trigger(query)

    begin, end = push_yes(trigger, query, range(1, 7), [0.8, 0.9, 0.7, 0.2, 0.6, 0.1])

    assert (begin.begin_stamp_ns, begin.confirmed_stamp_ns, begin.end_stamp_ns) == (S, 2 * S, 0)
    assert (begin.num_agreed, begin.num_counted, begin.probability) == (2, 2, 0.9)
    assert (end.begin_stamp_ns, end.end_stamp_ns, end.confirmed_stamp_ns) == (S, 4 * S, 6 * S)
    assert (end.num_agreed, end.num_counted, end.probability) == (2, 3, 0.1)
    assert (end.event_id, end.end_reason, end.query) == (begin.event_id, EndReason.OVER, query)
    assert end.answer.text == "no"
    assert (begin.previous, end.previous) == ("", "")


@pytest.mark.parametrize("reason", FORCED)
def test_forgetting_ends_an_open_event_at_the_last_frames_that_were_seen(reason: EndReason) -> None:
    query = standing()
    trigger = new_trigger(query)
    (begin,) = push_yes(trigger, query, [1, 2], [1, 0.75])

    (end,) = trigger.forget(reason)

    assert (end.event_id, end.phase, end.end_reason) == (begin.event_id, Phase.END, reason)
    assert (end.begin_stamp_ns, end.end_stamp_ns, end.confirmed_stamp_ns) == (S, 2 * S, 2 * S)
    assert (end.query, end.probability, end.num_agreed, end.num_counted) == (query, 0.75, 0, 0)
    assert end.answer.frames[-1].stamp_ns == 2 * S
    assert trigger.last is None
    assert trigger.forget(reason) == []


def test_cooldown_outlives_staleness_and_not_a_jump_of_time() -> None:
    query = standing(cooldown_s=100)
    for reason, num_events in ((EndReason.STALE, 0), (EndReason.TIME_JUMP, 1)):
        trigger = new_trigger(query)
        push_yes(trigger, query, [1, 2], [1, 0])
        trigger.forget(reason)

        assert len(push_yes(trigger, query, [3], [1])) == num_events


@st.composite
def conditions(draw: st.DrawFn) -> StandingQuery:
    m = draw(st.integers(1, 6))
    return standing(
        trigger=draw(st.sampled_from(["rising", "falling"])),
        target=draw(st.sampled_from(["", "yes", "no"])),
        threshold=draw(st.sampled_from([0.4, 0.5, 0.6, 0.9])),
        hysteresis=draw(st.sampled_from([0.0, 0.1, 0.2, 0.3])),
        debounce_n=draw(st.integers(1, m)),
        debounce_m=m,
        cooldown_s=draw(st.sampled_from([0, 3, 10])),
    )


@given(conditions(), lists_of_all_sizes(st.tuples(GAPS, PROBABILITIES), max_size=40), st.sampled_from([None, *FORCED]))
def test_conditions_are_those_of_the_obvious_way(
    query: StandingQuery, steps: list[tuple[int, float]], reason: EndReason | None
) -> None:
    seconds = list(itertools.accumulate(gap for gap, _ in steps))
    trigger = new_trigger(query)

    events = push_yes(trigger, query, seconds, [yes for _, yes in steps])
    events += trigger.forget(reason) if reason else []

    said = [("", 1 - yes if query.target == "no" else yes) for _, yes in steps]
    assert [told(e) for e in events] == expect(query, [second * S for second in seconds], said, ended_by=reason)


@given(
    st.sampled_from(["on_change", "every"]),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([0, 3, 10]),
    lists_of_all_sizes(st.tuples(GAPS, st.sampled_from("abc")), max_size=40),
)
def test_instants_are_those_of_the_obvious_way(
    trigger: str, n: int, extra: int, cooldown_s: float, steps: list[tuple[int, str]]
) -> None:
    debounce = {} if trigger == "every" else {"debounce_n": n, "debounce_m": n + extra}
    query = standing(answer_type="text", trigger=trigger, cooldown_s=cooldown_s, **debounce)
    trigger = new_trigger(query)
    stamps_ns = [second * S for second in itertools.accumulate(gap for gap, _ in steps)]
    events = []
    for stamp_ns, (_, text) in zip(stamps_ns, steps, strict=True):
        observation = read_answer(query, answer_of(query, text, stamp_ns))
        assert observation is not None
        events += trigger.push(observation)

    assert [told(e) for e in events] == expect(query, stamps_ns, [(text, 1.0) for _, text in steps])
    assert trigger.open_event is None
