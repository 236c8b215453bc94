"""Which query is worked on next, and the promise that each one gets exactly one answer.

In: queries from every door, with where their answer goes. Out: the next query for the worker. Higher priority first,
equals in order of arrival; no more than `capacity` wait. A query leaves as an answer in one of these ways, and the
first one settles it: the worker finished it, its deadline passed while it waited, its asker canceled it, there was no
room, or the node shuts down. No clock is read here, `now_ns` on the steady clock is passed in; the one wait is the
worker's, for something to do. Answers are told outside the lock, on the thread that settled them.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from nvila_ros.types import Answer, FinishReason, OnAnswer, OnPiece, Query, Timings

NS_PER_S = 1_000_000_000
SHUTTING_DOWN = "the node is shutting down"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Ticket:
    """A query and where its pieces and its one answer go."""

    query: Query
    on_answer: OnAnswer
    on_piece: OnPiece | None = None


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """How many queries wait, whether one runs, and how all others ended, by name of the reason."""

    num_waiting: int
    is_running: bool
    num_ended: dict[str, int]


class Scheduler:
    """The queue between the doors and the worker; safe to use from several threads.

    Args:
        capacity: queries that may wait; the one that runs is not counted.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._arrivals = itertools.count()
        self._waiting: dict[tuple[int, int], Ticket] = {}  # by (-priority, arrival)
        self._running: Ticket | None = None
        self._stop_reason: FinishReason | None = None  # of the one that runs
        self._is_closed = False
        self._num_ended = Counter({reason.name.lower(): 0 for reason in FinishReason})

    def refusal(self) -> str:
        """Return why a query would be rejected now, or an empty text."""
        with self._changed:
            if self._is_closed:
                return SHUTTING_DOWN
            if len(self._waiting) >= self._capacity:
                return f"queue_size = {self._capacity} queries wait already; ask again later, or cancel some"
            return ""

    def submit(self, ticket: Ticket, now_ns: int) -> bool:
        """Let a query wait, or answer it REJECTED at once.

        Returns:
            whether it waits.
        """
        with self._changed:
            error = self.refusal()
            if not error:
                self._waiting[(-ticket.query.priority, next(self._arrivals))] = ticket
                self._changed.notify()
                return True
        self._settle(ticket, unanswered(ticket.query, FinishReason.REJECTED, error, now_ns))
        return False

    def refuse(self, ticket: Ticket, reason: FinishReason, error: str, now_ns: int) -> None:
        """Answer a query that may not wait, since it breaks a rule."""
        self._settle(ticket, unanswered(ticket.query, reason, error, now_ns))

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a query to pop; returns False once the scheduler is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closed, timeout_s)
            return not self._is_closed

    def pop(self, now_ns: int) -> Ticket | None:
        """Take the next query to work on, or None if none waits; the caller must `finish` it."""
        self.expire(now_ns)
        with self._changed:
            assert self._running is None, "the last query was not finished"
            if not self._waiting:
                return None
            self._running = self._waiting.pop(min(self._waiting))
            self._stop_reason = None
            return self._running

    def should_stop(self, now_ns: int) -> FinishReason | None:
        """Return why the query that runs must end now, or None; those whose deadline passed waiting are answered."""
        self.expire(now_ns)
        with self._changed:
            assert self._running is not None, "no query runs"
            if self._stop_reason is not None:
                return self._stop_reason
            return FinishReason.DEADLINE if _is_late(self._running, now_ns) else None

    def finish(self, answer: Answer) -> None:
        """Settle the query that runs."""
        with self._changed:
            ticket, self._running = self._running, None
            assert ticket is not None, "no query runs"
            assert ticket.query.query_id == answer.query.query_id, "the answer is to another query"
            if self._is_closed and answer.finish_reason is FinishReason.CANCELED:
                answer = dataclasses.replace(answer, error=SHUTTING_DOWN)
        self._settle(ticket, answer)

    def cancel(self, query_id: str, now_ns: int) -> bool:
        """End a query: at once if it waits, at the next step or token if it runs.

        Returns:
            False if there is no such query, or no more.
        """
        with self._changed:
            if self._running is not None and self._running.query.query_id == query_id:
                self._stop_reason = self._stop_reason or FinishReason.CANCELED
                return True
            tickets = self._take(key for key, t in self._waiting.items() if t.query.query_id == query_id)
        self._settle_all(tickets, FinishReason.CANCELED, "canceled before its turn came", now_ns)
        return bool(tickets)

    def expire(self, now_ns: int) -> None:
        """Answer those whose deadline passed while they waited."""
        with self._changed:
            tickets = self._take(key for key, ticket in self._waiting.items() if _is_late(ticket, now_ns))
        self._settle_all(tickets, FinishReason.DEADLINE, "deadline_s passed before its turn came", now_ns)

    def close(self, now_ns: int) -> None:
        """Take no more queries, answer those that wait CANCELED and stop the one that runs."""
        with self._changed:
            self._is_closed = True
            self._stop_reason = self._stop_reason or FinishReason.CANCELED
            tickets = self._take(self._waiting)
            self._changed.notify_all()
        self._settle_all(tickets, FinishReason.CANCELED, SHUTTING_DOWN, now_ns)

    def state(self) -> SchedulerState:
        """Return what waits, runs and has ended."""
        with self._changed:
            return SchedulerState(len(self._waiting), self._running is not None, dict(self._num_ended))

    def _take(self, keys: Iterable[tuple[int, int]]) -> list[Ticket]:
        return [self._waiting.pop(key) for key in sorted(keys)]

    def _settle_all(self, tickets: list[Ticket], reason: FinishReason, error: str, now_ns: int) -> None:
        for ticket in tickets:
            self._settle(ticket, unanswered(ticket.query, reason, error, now_ns))

    def _settle(self, ticket: Ticket, answer: Answer) -> None:
        with self._changed:
            self._num_ended[answer.finish_reason.name.lower()] += 1
        ticket.on_answer(answer)


def unanswered(query: Query, reason: FinishReason, error: str, now_ns: int) -> Answer:
    """Return the answer to a query on which the model did not work, with the time it waited."""
    waited_s = (now_ns - query.accepted_ns) / NS_PER_S
    timings = Timings(queue_s=waited_s, total_s=waited_s)
    return Answer(query=query, finish_reason=reason, error=error, timings=timings)


def _is_late(ticket: Ticket, now_ns: int) -> bool:
    deadline_ns = ticket.query.deadline_ns
    return deadline_ns is not None and now_ns >= deadline_ns
