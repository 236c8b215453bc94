"""All standing queries of a node: which are due, the events that their answers make, and counts.

In: queries from YAML and services, the ROS clock as `now_ns`, and the answers. Out: groups of queries to ask now, and
events. Nothing here reads a clock or waits; the caller holds a lock around each call together with what it does with
the events, so that an end is never reported before its begin.

Two clocks are kept apart. The clock decides when a query is asked and when its knowledge is stale; capture stamps
decide everything about events. A jump back of either begins another past: what was known is forgotten.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from dataclasses import dataclass

from nvila_ros.errors import QueryError
from nvila_ros.standing.event import EndReason, Event
from nvila_ros.standing.observation import read_answer
from nvila_ros.standing.query import StandingQuery
from nvila_ros.standing.trigger_state import TriggerState
from nvila_ros.types import NS_PER_S, Answer, FinishReason
from nvila_ros.video.buffer import MAX_DISORDER_NS


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One time that a query is asked; its answer is given back with it.

    Attributes:
        query: complete.
        number: of the evaluation, from 1, over all queries of the registry.
        epoch: changes when the query is forgotten, so that an answer about another past is recognised.
    """

    query: StandingQuery
    number: int
    epoch: int


@dataclass(slots=True)
class EvaluationCounts:
    """How the evaluations of one query ended: each is answered, missed, repeated, or still open.

    Attributes:
        asked: how often it was asked.
        answered: answers that counted.
        missed: no answer came, or one that says nothing or is about another past.
        repeated: answers about frames no newer than those of the last one; they count for nothing.
        skipped: times it was asked while the evaluation before was still open, which the scheduler then replaces.
        events: begins, ends and instants reported.
    """

    asked: int = 0
    answered: int = 0
    missed: int = 0
    repeated: int = 0
    skipped: int = 0
    events: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingState:
    """How one query stands.

    Attributes:
        query: with `enabled` as it is now.
        counts: a copy.
        answer: the last that counted, or None where nothing is known.
        open_event: the event that has begun and not ended, or None.
        probability: of the target, or of what the answer says, in `answer`; None without one.
        last_reason: how the last evaluation ended.
        last_error: its error text.
    """

    query: StandingQuery
    counts: EvaluationCounts
    answer: Answer | None
    open_event: Event | None
    probability: float | None = None
    last_reason: FinishReason = FinishReason.UNKNOWN
    last_error: str = ""


class _Entry:
    """What the registry holds of one query."""

    def __init__(self, query: StandingQuery, trigger: TriggerState, epoch: int) -> None:
        self.query, self.trigger = query, trigger
        self.first_epoch = self.epoch = epoch
        self.counts = EvaluationCounts()
        self.next_due_ns = 0  # at once
        self.heard_ns = 0
        self.seen_ns: int | None = None  # the newest frame of the last answer, also once nothing is known any more
        self.last_reason = FinishReason.UNKNOWN
        self.last_error = ""
        self.last_asked = self.last_settled = self.last_counted = 0  # numbers of evaluations

    def is_stale(self, now_ns: int) -> bool:
        return self.trigger.last is not None and now_ns - self.heard_ns >= self.query.stale_s * NS_PER_S


class QueryRegistry:
    """Keeps the standing queries; every call that may end or begin an event returns the events, in order.

    Args:
        capacity: queries that may stand.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: dict[str, _Entry] = {}
        self._event_ids = map("e{:06d}".format, itertools.count(1))
        self._numbers, self._epochs = itertools.count(1), itertools.count(1)
        self._now_ns = 0

    def add(self, query: StandingQuery, *, is_replacing: bool = False) -> list[Event]:
        """Let a query stand; it is due at once.

        Args:
            query: complete.
            is_replacing: take the place of a query of that name, if there is one.

        Raises:
            QueryError: the name is taken, or there is no room.
        """
        if query.name in self._entries and not is_replacing:
            raise QueryError(f"a standing query must have a name of its own, {query.name!r} stands already; replace it")
        if query.name not in self._entries and len(self._entries) >= self._capacity:
            raise QueryError(f"max_standing = {self._capacity} queries stand already; remove one")
        events = self.remove(query.name) if query.name in self._entries else []
        self._entries[query.name] = _Entry(query, TriggerState(query, self._event_ids.__next__), next(self._epochs))
        return events

    def remove(self, name: str) -> list[Event]:
        """Forget a query for good.

        Raises:
            QueryError: none has that name.
        """
        events = self._forget(self._entry(name), EndReason.REMOVED)
        del self._entries[name]
        return events

    def enable(self, name: str, is_enabled: bool) -> list[Event]:
        """Ask a query again, at once, or no more for now; disabled, it knows nothing and has no open event.

        Raises:
            QueryError: none has that name.
        """
        entry = self._entry(name)
        if entry.query.enabled == is_enabled:
            return []
        entry.query = dataclasses.replace(entry.query, enabled=is_enabled)
        return self._forget(entry, EndReason.DISABLED)

    def expire(self, now_ns: int) -> list[Event]:
        """Move the clock on: end what is stale, and everything where the clock jumped back."""
        has_jumped = now_ns < self._now_ns - MAX_DISORDER_NS
        self._now_ns = now_ns if has_jumped else max(self._now_ns, now_ns)
        events: list[Event] = []
        for entry in self._entries.values():
            if has_jumped:
                events += self._forget(entry, EndReason.TIME_JUMP)
            elif entry.is_stale(self._now_ns):
                events += _count_events(entry, entry.trigger.forget(EndReason.STALE))
        return events

    def due(self, now_ns: int) -> list[list[Evaluation]]:
        """Hand out the queries to be asked now, those that can share a clip together, higher priority first.

        A query is due at the multiples of its period, counted from the clock's zero, and once when it is new; late
        calls lose evaluations and never pile them up. `expire` must have been called with this time before.
        """
        assert now_ns >= self._now_ns - MAX_DISORDER_NS, "expire comes before due"
        due = [e for e in self._entries.values() if e.query.enabled and e.next_due_ns <= now_ns]
        groups: dict[object, list[Evaluation]] = {}
        for entry in sorted(due, key=lambda entry: -entry.query.priority):
            groups.setdefault(entry.query.clip, []).append(self._ask(entry, now_ns))
        return list(groups.values())

    def observe(self, evaluation: Evaluation, answer: Answer, now_ns: int) -> list[Event]:
        """Take the answer of an evaluation; each gets exactly one."""
        events = self.expire(now_ns)
        entry = self._entries.get(evaluation.query.name)
        if entry is None or evaluation.epoch < entry.first_epoch:
            return events  # the query was removed meanwhile
        is_known = evaluation.epoch == entry.epoch and evaluation.number > entry.last_counted
        observation = read_answer(entry.query, answer) if is_known else None
        entry.last_reason, entry.last_error = answer.finish_reason, answer.error
        entry.last_settled = max(entry.last_settled, evaluation.number)
        if observation is None:
            entry.counts.missed += 1
            return events
        last_ns = observation.stamp_ns - 1 if entry.seen_ns is None else entry.seen_ns
        if observation.stamp_ns < last_ns - MAX_DISORDER_NS:
            events += _count_events(entry, entry.trigger.forget(EndReason.TIME_JUMP))
        elif observation.stamp_ns <= last_ns:
            entry.counts.repeated += 1
            return events
        entry.counts.answered += 1
        entry.seen_ns = observation.stamp_ns
        entry.last_counted, entry.heard_ns = evaluation.number, self._now_ns
        return events + _count_events(entry, entry.trigger.push(observation))

    def states(self) -> list[StandingState]:
        """Return how each query stands, in the order in which they were added."""
        return [_state(entry) for entry in self._entries.values()]

    def state(self, name: str) -> StandingState | None:
        """Return how the query of that name stands, None where there is none."""
        return _state(self._entries[name]) if name in self._entries else None

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            near = difflib.get_close_matches(name, self._entries) or list(self._entries)
            raise QueryError(f"no standing query is named {name!r}; did you mean one of {near}")
        return self._entries[name]

    def _ask(self, entry: _Entry, now_ns: int) -> Evaluation:
        entry.next_due_ns = (now_ns // entry.query.period_ns + 1) * entry.query.period_ns
        entry.counts.asked += 1
        entry.counts.skipped += entry.last_settled < entry.last_asked
        entry.last_asked = next(self._numbers)
        return Evaluation(query=entry.query, number=entry.last_asked, epoch=entry.epoch)

    def _forget(self, entry: _Entry, reason: EndReason) -> list[Event]:
        """Begin another epoch: answers to what was asked before count no more, and the query is due at once."""
        entry.epoch = next(self._epochs)
        entry.next_due_ns = 0
        entry.last_settled = entry.last_asked
        if reason is EndReason.TIME_JUMP:
            entry.seen_ns = None
        return _count_events(entry, entry.trigger.forget(reason))


def _state(entry: _Entry) -> StandingState:
    last = entry.trigger.last
    return StandingState(
        query=entry.query,
        counts=dataclasses.replace(entry.counts),
        answer=last.answer if last else None,
        open_event=entry.trigger.open_event,
        probability=last.probability if last else None,
        last_reason=entry.last_reason,
        last_error=entry.last_error,
    )


def _count_events(entry: _Entry, events: list[Event]) -> list[Event]:
    entry.counts.events += len(events)
    return events
