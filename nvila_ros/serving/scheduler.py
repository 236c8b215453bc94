"""Which requests are worked on next, and the promise that each gets exactly one answer.

In: requests from every endpoint. Out: the next ones for the worker: an interactive one by itself, or standing ones
about one clip together. The rules:

- Higher priority first; among equals interactive before standing, then in order of arrival. A request is passed over
  by equals that came after it at most `MAX_PASSES` times.
- An interactive request preempts standing ones of no higher priority at their next step. They wait again in their old
  place, and are not preempted a second time.
- A standing query waits once: a newer evaluation takes the older one's place in the queue, with how often that was
  passed over and whether it was preempted, and the older is answered REPLACED.
- No more than `capacity` interactive requests wait. Standing ones are bounded by their number.
- A held request (its JSON schema is being tried) counts as waiting, but is not taken before it is released.
- A request that would miss its deadline even if it were as fast as the fastest recent one of its kind is not begun.

The first end counts: the worker finished it, its deadline passed, whoever asked canceled it, a newer one replaced it,
there was no room, or the node shuts down. No clock is read here, `now_ns` on the steady clock is passed in; the only
wait is the worker's, for something to do. Answers are delivered outside the lock, on the thread that ended the request.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nvila_ros.request import Request, RequestState
from nvila_ros.types import NS_PER_S, Answer, FinishReason, Query

LOG = logging.getLogger(__name__)
MAX_PASSES = 4
NUM_TIMED = 8  # recent answers of a kind; the fastest is the estimate for the next
DECAY = 0.8  # of an estimate, each time that it keeps a request from being tried
SHUTTING_DOWN = "the node is shutting down"


@dataclass(frozen=True, slots=True)
class SchedulerState:
    """How many requests wait and run, how often one was preempted, and how all others ended, by name of the reason."""

    num_waiting: int
    num_running: int
    num_preempted: int
    num_ended: dict[str, int]


class Scheduler:
    """The queue between the endpoints and the worker; safe to use from several threads.

    Args:
        capacity: interactive requests that may wait; those that run are not counted.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._changed = threading.Condition()
        self._arrivals = itertools.count()
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._closed = ""  # why nothing is taken any more
        self._latency = _LatencyEstimate()
        self._num_preempted = 0
        self._num_ended = Counter({reason.name.lower(): 0 for reason in FinishReason})

    def refusal(self) -> str:
        """Return why an interactive request would be rejected now, or an empty text."""
        with self._changed:
            if self._closed:
                return self._closed
            if sum(not request.query.standing for request in self._waiting) >= self._capacity:
                return f"queue_size = {self._capacity} queries wait already; ask again later, or cancel some"
            return ""

    def submit(self, requests: Sequence[Request], now_ns: int) -> None:
        """Queue requests that came together, so that they are taken together; answer REJECTED those that may not wait.

        Args:
            requests: of state NEW, or HELD until they are released.
            now_ns: steady clock.
        """
        ended: list[Request] = []
        with self._changed:
            for request in requests:
                error = self._enqueue(request, ended, now_ns)
                if error:
                    request.refuse(FinishReason.REJECTED, error, now_ns)
                    ended.append(request)
            self._changed.notify()
        self._deliver(ended)

    def _enqueue(self, request: Request, ended: list[Request], now_ns: int) -> str:
        """Queue a request, in place of an older evaluation of the same standing query; return why it may not wait."""
        standing = request.query.standing
        request.arrival = next(self._arrivals)
        error = self._closed if standing else self.refusal()
        if error:
            return error
        if standing:
            for older in self._take(lambda waiting: waiting.query.standing == standing):
                request.take_place_of(older)
                older.refuse(FinishReason.REPLACED, f"{standing!r} was asked anew before its turn", now_ns)
                ended.append(older)
        if request.state is RequestState.NEW:
            request.state = RequestState.WAITING
        self._waiting.append(request)
        return ""

    def release(self, request: Request) -> None:
        """Let a held request be taken; without effect on one that has ended meanwhile."""
        with self._changed:
            if request.state is RequestState.HELD:
                request.state = RequestState.WAITING
                self._changed.notify()

    def refuse(self, request: Request, reason: FinishReason, error: str, now_ns: int) -> None:
        """End a request that is new or held, since it breaks a rule; without effect on one that has ended."""
        with self._changed:
            if request.state not in (RequestState.NEW, RequestState.HELD):
                return
            self._take(lambda waiting: waiting is request)
            request.state = RequestState.ENDED
        request.refuse(reason, error, now_ns)
        self._deliver([request])

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a request to pop, or the time to pass; return False once the scheduler is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready() or self._closed, timeout_s)
            return not self._closed

    def pop(self, now_ns: int) -> list[Request]:
        """Take the requests to work on next, none if none is ready; the caller must `finish` each."""
        self.expire(now_ns)
        with self._changed:
            assert not self._running, "the last requests were not finished"
            hopeless = self._take(lambda request: self._latency.is_hopeless(request.query, now_ns))
            self._latency.decay(request.query for request in hopeless)
            self._running = self._choose_group()
            for request in self._running:
                request.state = RequestState.RUNNING
            group = list(self._running)
        self._end_all(hopeless, FinishReason.DEADLINE, "what is left of deadline_s is too short to answer in", now_ns)
        return group

    def should_stop(self, request: Request, now_ns: int) -> FinishReason | None:
        """Return why a running request must end now, or None; waiting ones whose deadline has passed are answered."""
        self.expire(now_ns)
        with self._changed:
            assert request in self._running, f"{request.query.query_id} does not run"
            if request.stop_reason is not None:
                return request.stop_reason
            if _is_late(request.query, now_ns):
                return FinishReason.DEADLINE
            if self._must_be_preempted(request):
                request.is_preempted = True
                return FinishReason.CANCELED
            return None

    def finish(self, request: Request, now_ns: int) -> None:
        """Deliver the answer of a running request, or let it wait again if it was preempted."""
        with self._changed:
            answer = request.answer
            assert request in self._running, f"{request.query.query_id} does not run"
            assert answer is not None, f"{request.query.query_id} has no answer"
            self._running.remove(request)
            is_canceled = answer.finish_reason is FinishReason.CANCELED
            if self._closed and is_canceled:
                request.answer = dataclasses.replace(answer, error=self._closed)
            elif request.is_preempted and is_canceled and request.stop_reason is None:
                self._wait_again(request, now_ns)
                if request.state is RequestState.WAITING:
                    return
            self._latency.learn(answer)
        self._deliver([request])

    def _wait_again(self, request: Request, now_ns: int) -> None:
        """Queue a preempted request in its old place, or refuse it where a newer evaluation has come meanwhile."""
        self._num_preempted += 1
        request.is_preempted, request.was_preempted = False, True
        standing = request.query.standing
        newer = next((waiting for waiting in self._waiting if waiting.query.standing == standing), None)
        if newer is None:
            request.answer, request.state = None, RequestState.WAITING
            self._waiting.append(request)
        else:
            newer.take_place_of(request)
            request.refuse(FinishReason.REPLACED, f"{standing!r} was asked anew while it was preempted", now_ns)

    def cancel(self, query_id: str, now_ns: int) -> bool:
        """End a request: at once if it waits, at the next step or token if it runs.

        Returns:
            False if there is no such request, or no more.
        """
        return self._cancel(lambda query: query.query_id == query_id, now_ns)

    def cancel_standing(self, name: str, now_ns: int) -> bool:
        """End whatever a standing query asks, as `cancel`."""
        return self._cancel(lambda query: query.standing == name, now_ns)

    def cancel_all(self, now_ns: int, error: str) -> None:
        """End all that waits and runs, as `cancel`; what comes later is taken."""
        with self._changed:
            for request in self._running:
                request.stop_reason = request.stop_reason or FinishReason.CANCELED
            waiting = self._take(lambda request: True)
        self._end_all(waiting, FinishReason.CANCELED, error, now_ns)

    def expire(self, now_ns: int) -> None:
        """Answer those whose deadline passed while they waited."""
        with self._changed:
            late = self._take(lambda request: _is_late(request.query, now_ns))
        self._end_all(late, FinishReason.DEADLINE, "deadline_s passed before its turn came", now_ns)

    def close(self, now_ns: int) -> None:
        """Take no more requests, answer those that wait CANCELED and stop those that run."""
        with self._changed:
            self._closed = self._closed or SHUTTING_DOWN
            for request in self._running:
                request.stop_reason = request.stop_reason or FinishReason.CANCELED
            waiting = self._take(lambda request: True)
            self._changed.notify_all()
        self._end_all(waiting, FinishReason.CANCELED, SHUTTING_DOWN, now_ns)

    def abort(self, now_ns: int, error: str) -> None:
        """Take no more requests and answer all FAILED, also those that run: nobody works any more."""
        with self._changed:
            self._closed = self._closed or error
            lost = self._running + self._take(lambda request: True)
            self._running = []
            self._changed.notify_all()
        self._end_all(lost, FinishReason.FAILED, error, now_ns)

    def has_other_work(self) -> bool:
        """Whether what nobody asked for should stop: a request is ready, or there will be none any more."""
        with self._changed:
            return bool(self._ready() or self._closed)

    def state(self) -> SchedulerState:
        """Return what waits, runs, was preempted and has ended."""
        with self._changed:
            return SchedulerState(len(self._waiting), len(self._running), self._num_preempted, dict(self._num_ended))

    def _ready(self) -> list[Request]:
        return [request for request in self._waiting if request.state is RequestState.WAITING]

    def _choose_group(self) -> list[Request]:
        """Take the first in the queue, and standing requests that can be answered with it."""
        ready = self._ready()
        if not ready:
            return []
        first = min(ready, key=_rank)
        query = first.query
        for request in ready:
            if request.arrival < first.arrival and request.query.priority == query.priority:
                request.num_passed += 1
        if not query.standing:
            return self._take(lambda request: request is first)
        return self._take(
            lambda request: (
                bool(request.query.standing)
                and request.state is RequestState.WAITING
                and (request.query.priority, request.query.clip) == (query.priority, query.clip)
            )
        )

    def _must_be_preempted(self, request: Request) -> bool:
        if not request.query.standing or request.was_preempted or request.num_passed >= MAX_PASSES:
            return False
        return any(not r.query.standing and r.query.priority >= request.query.priority for r in self._ready())

    def _cancel(self, is_meant: Callable[[Query], bool], now_ns: int) -> bool:
        with self._changed:
            running = [request for request in self._running if is_meant(request.query)]
            for request in running:
                request.stop_reason = request.stop_reason or FinishReason.CANCELED
            waiting = self._take(lambda request: is_meant(request.query))
        self._end_all(waiting, FinishReason.CANCELED, "canceled before its turn came", now_ns)
        return bool(waiting or running)

    def _take(self, is_taken: Callable[[Request], bool]) -> list[Request]:
        """Remove requests from the queue and return them in order of arrival."""
        taken = [request for request in self._waiting if is_taken(request)]
        self._waiting = [request for request in self._waiting if request not in taken]
        for request in taken:
            request.state = RequestState.ENDED
        return sorted(taken, key=lambda request: request.arrival)

    def _end_all(self, requests: Iterable[Request], reason: FinishReason, error: str, now_ns: int) -> None:
        for request in requests:
            request.refuse(reason, error, now_ns)
            self._deliver([request])

    def _deliver(self, requests: Iterable[Request]) -> None:
        for request in requests:
            assert request.answer is not None, f"{request.query.query_id} has no answer"
            with self._changed:
                self._num_ended[request.answer.finish_reason.name.lower()] += 1
            try:
                request.deliver()
            except Exception:  # whoever asked may be gone, and this thread works for others too
                LOG.exception("query_id=%s: its answer cannot be delivered", request.query.query_id)


class _LatencyEstimate:
    """The fastest recent answer of each kind: how long the next takes at least."""

    def __init__(self) -> None:
        self._seconds: dict[tuple[int, str, bool, int], deque[float]] = {}

    def learn(self, answer: Answer) -> None:
        """Record how long an answer took; only one that reached its own end shows how long that takes."""
        if answer.finish_reason.is_answered:
            seconds = self._seconds.setdefault(_latency_kind(answer.query), deque(maxlen=NUM_TIMED))
            seconds.append(answer.timings.total_s - answer.timings.queue_s)

    def is_hopeless(self, query: Query, now_ns: int) -> bool:
        """Whether a deadline cannot be met."""
        seconds = self._seconds.get(_latency_kind(query))
        return bool(query.deadline_ns is not None and seconds and now_ns + min(seconds) * NS_PER_S > query.deadline_ns)

    def decay(self, queries: Iterable[Query]) -> None:
        """Lower the estimates of the kinds of queries that were not tried, so that they are tried again in time."""
        for kind in {_latency_kind(query) for query in queries}:
            self._seconds[kind] = deque((DECAY * s for s in self._seconds[kind]), maxlen=NUM_TIMED)


def _rank(request: Request) -> tuple[int, bool, int]:
    """The least comes first."""
    query = request.query
    return -query.priority, bool(query.standing) and request.num_passed < MAX_PASSES, request.arrival


def _latency_kind(query: Query) -> tuple[int, str, bool, int]:
    """What decides most of how long an answer takes: frames, kind of answer, and roughly how many tokens."""
    return query.num_frames or len(query.images), query.answer_type, bool(query.choices), query.max_tokens.bit_length()


def _is_late(query: Query, now_ns: int) -> bool:
    return query.deadline_ns is not None and now_ns >= query.deadline_ns
