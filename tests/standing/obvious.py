"""The triggers once more, slow and obvious: the whole history at once, and no state carried along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvila_ros.standing.event import EndReason, Event
from nvila_ros.standing.query import StandingQuery
from nvila_ros.types import Answer, FinishReason, FrameRef, Query

S = 1_000_000_000


@dataclass(frozen=True)
class Told:
    """What an event says, without its answer."""

    phase: str
    begin_ns: int
    confirmed_ns: int
    end_ns: int = 0
    num_agreed: int = 0
    num_counted: int = 0
    reason: str = "NONE"


@dataclass(frozen=True)
class Span:
    """Answers from `start` up to before `end` stand under one believed state; the first `counted` made it believed."""

    state: str
    start: int
    end: int
    first: int
    num_agreed: int
    num_counted: int
    is_first: bool


def told(event: Event) -> Told:
    return Told(
        event.phase.name,
        event.begin_stamp_ns,
        event.confirmed_stamp_ns,
        event.end_stamp_ns,
        event.num_agreed,
        event.num_counted,
        event.end_reason.name,
    )


def expect(
    query: StandingQuery,
    stamps_ns: Sequence[int],
    said: Sequence[tuple[str, float]],
    *,
    last_begin_ns: int | None = None,
    ended_by: EndReason | None = None,
) -> list[Told]:
    """Return what a history of answers, each with its value and probability, should have told."""
    if query.has_condition:
        states = _sides(query, [probability for _, probability in said])
    else:
        states = [value for value, _ in said]
    spans = _each(states) if query.trigger == "every" else _spans(states, query.debounce_n, query.debounce_m)
    events: list[Told] = []
    last_told: str | None = None
    for span in spans:
        if query.trigger == "rising" and span.state == "down":
            continue
        if query.trigger == "falling" and (span.state == "up" or span.is_first):
            continue
        if query.trigger == "on_change" and span.state == last_told:
            continue
        cool = [
            i
            for i in range(span.start, span.end)
            if states[i] == span.state
            and (last_begin_ns is None or stamps_ns[i] - last_begin_ns >= round(query.cooldown_s * S))
        ]
        if not cool:
            continue
        last_begin_ns, last_told = stamps_ns[cool[0]], span.state
        phase = "BEGIN" if query.has_condition else "INSTANT"
        begin_ns = stamps_ns[span.first]
        events.append(Told(phase, begin_ns, last_begin_ns, 0, span.num_agreed, span.num_counted))
        if query.has_condition and span.end < len(states):
            after = next(other for other in spans if other.start == span.end)
            counts = (after.num_agreed, after.num_counted)
            events.append(Told("END", begin_ns, stamps_ns[after.start], stamps_ns[after.first], *counts, reason="OVER"))
        elif query.has_condition and ended_by is not None:
            events.append(Told("END", begin_ns, stamps_ns[-1], stamps_ns[-1], reason=ended_by.name))
    return events


def _sides(query: StandingQuery, probabilities: Sequence[float]) -> list[str]:
    """The side of each answer: that of the last one which left no doubt, and down before any did."""
    low = query.threshold - query.hysteresis
    sides = []
    for i in range(len(probabilities)):
        sure = [p for p in probabilities[: i + 1] if p >= query.threshold or p < low]
        sides.append("up" if sure and sure[-1] >= query.threshold else "down")
    return sides


def _each(states: Sequence[str]) -> list[Span]:
    return [Span(state, i, i + 1, i, 1, 1, i == 0) for i, state in enumerate(states)]


def _spans(states: Sequence[str], n: int, m: int) -> list[Span]:
    starts: list[tuple[int, int, int, int]] = []
    while True:
        since = starts[-1][0] + 1 if starts else 0
        old = states[starts[-1][0]] if starts else None
        for i in range(since, len(states)):
            window = range(max(since, i - m + 1), i + 1)
            agreeing = [j for j in window if states[j] == states[i]]
            if states[i] != old and len(agreeing) >= n:
                starts.append((i, agreeing[0], len(agreeing), len(window)))
                break
        else:
            break
    ends = [start for start, *_ in starts[1:]] + [len(states)] * bool(starts)
    return [
        Span(states[start], start, end, first, num_agreed, num_counted, k == 0)
        for k, ((start, first, num_agreed, num_counted), end) in enumerate(zip(starts, ends, strict=True))
    ]


def answer_of(
    query: StandingQuery,
    text: str,
    stamp_ns: int | None,
    *,
    choices: Sequence[str] = (),
    probabilities: Sequence[float] = (),
    reason: FinishReason = FinishReason.STOP,
) -> Answer:
    """Return an answer of the model about one frame, or about none."""
    asked = Query(query_id="q", question=query.question, standing=query.name)
    frames = () if stamp_ns is None else (FrameRef(stamp_ns=stamp_ns, camera="camera", frame_id="optical"),)
    return Answer(
        query=asked,
        finish_reason=reason,
        text=text,
        frames=frames,
        choices=tuple(choices),
        probabilities=tuple(probabilities),
    )


def yes_no_answer(query: StandingQuery, yes: float, stamp_ns: int | None) -> Answer:
    """Return an answer that is yes with a probability."""
    text = "yes" if yes >= 0.5 else "no"
    return answer_of(query, text, stamp_ns, choices=("yes", "no"), probabilities=(yes, 1 - yes))
