"""Which queries are worked on next, and the promise that each one gets exactly one answer.

In: queries from every door, with where their answer goes. Out: the next ones for the worker: an interactive query by
itself, or standing queries about one clip together. The rules:

- Higher priority first; among equals interactive before standing, then in order of arrival. A query is passed over by
  equals that came after it at most `MAX_PASSES` times.
- An interactive query makes standing ones of no higher priority give way at their next step. They wait again in their
  old place, and do not give way a second time.
- A standing query waits once: a newer asking takes the older one's place in the line, with how often that was passed
  over and whether it gave way, and the older is answered REPLACED.
- No more than `capacity` interactive queries wait. Standing ones are bounded by their number.
- A query that cannot be answered before its deadline even as fast as the fastest of its kind lately is not begun.

The first way in which a query is settled is the one that counts: the worker finished it, its deadline passed, its asker
canceled it, a newer one replaced it, there was no room, or the node shuts down. No clock is read here, `now_ns` on the
steady clock is passed in; the one wait is the worker's, for something to do. Answers are told outside the lock, on the
thread that settled them.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nvila_ros.types import NS_PER_S, Answer, FinishReason, OnAnswer, OnPiece, Query, Timings

LOG = logging.getLogger(__name__)
MAX_PASSES = 4
NUM_TIMED = 8  # answers of a kind of which the fastest is expected of the next
EASING = 0.8  # of an expectation each time that it keeps a query from being tried
SHUTTING_DOWN = "the node is shutting down"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Ticket:
    """A query and where its pieces and its one answer go."""

    query: Query
    on_answer: OnAnswer
    on_piece: OnPiece | None = None


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """How many queries wait and run, how often one gave way, and how all others ended, by name of the reason."""

    num_waiting: int
    num_running: int
    num_preempted: int
    num_ended: dict[str, int]


@dataclass(slots=True, eq=False)
class _Place:
    """A ticket's place in the line; it keeps it when the ticket gives way."""

    ticket: Ticket
    arrival: int
    num_passed: int = 0
    has_given_way: bool = False
    stop_reason: FinishReason | None = None
    gives_way: bool = False

    @property
    def query(self) -> Query:
        return self.ticket.query

    def take_over(self, older: _Place) -> None:
        """Stand where an older asking of the same query stood, or it would never get to the front."""
        self.arrival = older.arrival
        self.num_passed, self.has_given_way = older.num_passed, older.has_given_way

    @property
    def rank(self) -> tuple[int, bool, int]:
        """The least comes first."""
        return -self.query.priority, bool(self.query.standing) and self.num_passed < MAX_PASSES, self.arrival


class Scheduler:
    """The queue between the doors and the worker; safe to use from several threads.

    Args:
        capacity: interactive queries that may wait; those that run are not counted.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._arrivals = itertools.count()
        self._waiting: list[_Place] = []
        self._running: dict[str, _Place] = {}  # by query_id
        self._is_closed = False
        self._pace = _Pace()
        self._num_preempted = 0
        self._num_ended = Counter({reason.name.lower(): 0 for reason in FinishReason})

    def refusal(self) -> str:
        """Return why an interactive query would be rejected now, or an empty text."""
        with self._changed:
            if self._is_closed:
                return SHUTTING_DOWN
            if sum(not place.query.standing for place in self._waiting) >= self._capacity:
                return f"queue_size = {self._capacity} queries wait already; ask again later, or cancel some"
            return ""

    def submit(self, tickets: Sequence[Ticket], now_ns: int) -> None:
        """Let queries wait that came together, so that they are taken together; answer REJECTED those that may not."""
        settled: list[tuple[Ticket, FinishReason, str]] = []
        with self._changed:
            for ticket in tickets:
                error = self._admit(ticket, settled)
                if error:
                    settled.append((ticket, FinishReason.REJECTED, error))
            self._changed.notify()
        for ticket, reason, error in settled:
            self._settle(ticket, unanswered(ticket.query, reason, error, now_ns))

    def _admit(self, ticket: Ticket, settled: list[tuple[Ticket, FinishReason, str]]) -> str:
        """Let a query wait, in place of an older asking of the same standing one; returns why it may not."""
        standing = ticket.query.standing
        place = _Place(ticket, next(self._arrivals))
        if self._is_closed:
            return SHUTTING_DOWN
        if not standing:
            error = self.refusal()
            if error:
                return error
        else:
            for older in self._take(lambda place: place.query.standing == standing):
                place.take_over(older)
                settled.append((older.ticket, FinishReason.REPLACED, f"{standing!r} was asked anew before its turn"))
        self._waiting.append(place)
        return ""

    def refuse(self, ticket: Ticket, reason: FinishReason, error: str, now_ns: int) -> None:
        """Answer a query that may not wait, since it breaks a rule."""
        self._settle(ticket, unanswered(ticket.query, reason, error, now_ns))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a query to pop, or the time to pass; returns False once the scheduler is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed, timeout_s)
            return not self._is_closed

    def pop(self, now_ns: int) -> list[Ticket]:
        """Take the queries to work on next, none if none waits; the caller must `finish` each."""
        self.expire(now_ns)
        with self._changed:
            assert not self._running, "the last queries were not finished"
            hopeless = self._take(lambda place: self._pace.is_hopeless(place.query, now_ns))
            self._pace.ease(place.query for place in hopeless)
            group = self._choose_group()
            self._running = {place.query.query_id: place for place in group}
        self._settle_all(
            hopeless, FinishReason.DEADLINE, "what is left of deadline_s is too short to answer in", now_ns
        )
        return [place.ticket for place in group]

    def should_stop(self, query_id: str, now_ns: int) -> FinishReason | None:
        """Return why a query that runs must end now, or None; those whose deadline passed waiting are answered."""
        self.expire(now_ns)
        with self._changed:
            place = self._running.get(query_id)
            assert place is not None, f"{query_id} does not run"
            if place.stop_reason is not None:
                return place.stop_reason
            if _is_late(place.query, now_ns):
                return FinishReason.DEADLINE
            if self._must_give_way(place):
                place.gives_way = True
                return FinishReason.CANCELED
            return None

    def finish(self, answer: Answer, now_ns: int) -> None:
        """Settle a query that runs, or let it wait again if it gave way."""
        with self._changed:
            place = self._running.pop(answer.query.query_id, None)
            assert place is not None, f"{answer.query.query_id} does not run"
            is_canceled = answer.finish_reason is FinishReason.CANCELED
            if self._is_closed and is_canceled:
                answer = dataclasses.replace(answer, error=SHUTTING_DOWN)
            elif place.gives_way and is_canceled and place.stop_reason is None:
                self._num_preempted += 1
                place.gives_way, place.has_given_way = False, True
                newer = next((other for other in self._waiting if other.query.standing == place.query.standing), None)
                if newer is None:
                    self._waiting.append(place)
                    return
                newer.take_over(place)
                error = f"{place.query.standing!r} was asked anew while it gave way to another question"
                answer = unanswered(place.query, FinishReason.REPLACED, error, now_ns)
            self._pace.learn(answer)
        self._settle(place.ticket, answer)

    def cancel(self, query_id: str, now_ns: int) -> bool:
        """End a query: at once if it waits, at the next step or token if it runs.

        Returns:
            False if there is no such query, or no more.
        """
        return self._cancel(lambda query: query.query_id == query_id, now_ns)

    def cancel_standing(self, name: str, now_ns: int) -> bool:
        """End whatever a standing query asks, as `cancel`."""
        return self._cancel(lambda query: query.standing == name, now_ns)

    def expire(self, now_ns: int) -> None:
        """Answer those whose deadline passed while they waited."""
        with self._changed:
            places = self._take(lambda place: _is_late(place.query, now_ns))
        self._settle_all(places, FinishReason.DEADLINE, "deadline_s passed before its turn came", now_ns)

    def close(self, now_ns: int) -> None:
        """Take no more queries, answer those that wait CANCELED and stop those that run."""
        with self._changed:
            self._is_closed = True
            for place in self._running.values():
                place.stop_reason = place.stop_reason or FinishReason.CANCELED
            places = self._take(lambda place: True)
            self._changed.notify_all()
        self._settle_all(places, FinishReason.CANCELED, SHUTTING_DOWN, now_ns)

    def has_other_work(self) -> bool:
        """Whether what nobody asked for should stop: a query waits, or there will be none any more."""
        with self._changed:
            return bool(self._waiting) or self._is_closed

    def state(self) -> SchedulerState:
        """Return what waits, runs, gave way and has ended."""
        with self._changed:
            return SchedulerState(len(self._waiting), len(self._running), self._num_preempted, dict(self._num_ended))

    def _choose_group(self) -> list[_Place]:
        """Take the first in line, and standing queries that can be answered with it."""
        if not self._waiting:
            return []
        first = min(self._waiting, key=lambda place: place.rank)
        query = first.query
        for place in self._waiting:
            if place.arrival < first.arrival and place.query.priority == query.priority:
                place.num_passed += 1
        if not query.standing:
            return self._take(lambda place: place is first)
        return self._take(
            lambda place: (
                bool(place.query.standing) and (place.query.priority, place.query.clip) == (query.priority, query.clip)
            )
        )

    def _must_give_way(self, place: _Place) -> bool:
        if not place.query.standing or place.has_given_way or place.num_passed >= MAX_PASSES:
            return False
        return any(not other.query.standing and other.query.priority >= place.query.priority for other in self._waiting)

    def _cancel(self, is_meant: Callable[[Query], bool], now_ns: int) -> bool:
        with self._changed:
            running = [place for place in self._running.values() if is_meant(place.query)]
            for place in running:
                place.stop_reason = place.stop_reason or FinishReason.CANCELED
            places = self._take(lambda place: is_meant(place.query))
        self._settle_all(places, FinishReason.CANCELED, "canceled before its turn came", now_ns)
        return bool(places or running)

    def _take(self, is_taken: Callable[[_Place], bool]) -> list[_Place]:
        """Remove places from the line and return them in order of arrival."""
        taken = [place for place in self._waiting if is_taken(place)]
        self._waiting = [place for place in self._waiting if place not in taken]
        return sorted(taken, key=lambda place: place.arrival)

    def _settle_all(self, places: Iterable[_Place], reason: FinishReason, error: str, now_ns: int) -> None:
        for place in places:
            self._settle(place.ticket, unanswered(place.query, reason, error, now_ns))

    def _settle(self, ticket: Ticket, answer: Answer) -> None:
        with self._changed:
            self._num_ended[answer.finish_reason.name.lower()] += 1
        try:
            ticket.on_answer(answer)
        except Exception:  # whoever asked may be gone, and the thread that settles works for others too
            LOG.exception("query_id=%s: its answer cannot be told", ticket.query.query_id)


class _Pace:
    """How fast the fastest answer of each kind was lately: what the next can be expected to take at least."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, str, bool, int], deque[float]] = {}

    def learn(self, answer: Answer) -> None:
        """Take note of how long an answer took; only one that was told to its end says how long that takes."""
        if answer.finish_reason.is_answered:
            seconds = self._seconds.setdefault(_kind(answer.query), deque(maxlen=NUM_TIMED))
            seconds.append(answer.timings.total_s - answer.timings.queue_s)

    def is_hopeless(self, query: Query, now_ns: int) -> bool:
        """Whether a deadline cannot be met."""
        seconds = self._seconds.get(_kind(query))
        return bool(query.deadline_ns is not None and seconds and now_ns + min(seconds) * NS_PER_S > query.deadline_ns)

    def ease(self, queries: Iterable[Query]) -> None:
        """Expect less of the kinds of queries that were not tried, so that they are tried again in time."""
        for kind in {_kind(query) for query in queries}:
            self._seconds[kind] = deque((EASING * s for s in self._seconds[kind]), maxlen=NUM_TIMED)


def unanswered(query: Query, reason: FinishReason, error: str, now_ns: int) -> Answer:
    """Return the answer to a query on which the model did not work, with the time it waited."""
    waited_s = (now_ns - query.accepted_ns) / NS_PER_S
    timings = Timings(queue_s=waited_s, total_s=waited_s)
    return Answer(query=query, finish_reason=reason, error=error, timings=timings)


def _kind(query: Query) -> tuple[int, str, bool, int]:
    """What decides most of how long an answer takes: the frames, whether text is told, and how much, roughly."""
    return query.num_frames, query.answer_type, bool(query.choices), query.max_tokens.bit_length()


def _is_late(query: Query, now_ns: int) -> bool:
    return query.deadline_ns is not None and now_ns >= query.deadline_ns
