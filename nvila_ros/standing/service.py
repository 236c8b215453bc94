"""Standing queries at work: asked when they are due, changed from any thread, their events handed on in order.

Callers come on several threads: a tick, endpoints, and the worker with its answers. One lock is held around each call
of the registry together with the handing on of its events, so that events leave in the order in which they were made.
The clock is read under it too, so that for the registry time goes back only when the clock does. Nothing is submitted
or canceled under it, since the scheduler may answer on the same thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path

from nvila_ros.errors import ConfigError, NvilaError
from nvila_ros.prompt.answer_kinds import Constrained, parse_kind, schema_error
from nvila_ros.request import Request
from nvila_ros.serving.answering import Answering
from nvila_ros.serving.throttle import Throttle
from nvila_ros.standing.event import Event
from nvila_ros.standing.listing import read_queries
from nvila_ros.standing.query import StandingQuery, check_schema, complete, to_query
from nvila_ros.standing.registry import Evaluation, EvaluationCounts, QueryRegistry, StandingState
from nvila_ros.types import Answer, FinishReason

LOG = logging.getLogger(__name__)
WARN_EVERY_S = 5.0
QUIET = (FinishReason.CANCELED, FinishReason.REPLACED)
OnDone = Callable[[str], None]
"""Takes why a change cannot be made, or an empty text; at once, or on the thread that tried a schema."""


class StandingService:
    """Asks the standing queries of one process.

    Args:
        answering: takes what is asked.
        is_active: returns whether questions are answered; while they are not, nothing is asked.

    Attributes:
        on_events: take the events of each change, in order, under the lock; appended to before the first.
        on_changes: are called when a query was added, removed, enabled or answered, and how it stands may be read.

    Raises:
        ConfigError: the file of the parameter `standing_queries` is not acceptable.
    """

    def __init__(self, answering: Answering, is_active: Callable[[], bool]) -> None:
        self._answering, self._is_active = answering, is_active
        self.on_events: list[Callable[[Sequence[Event]], None]] = []
        self.on_changes: list[Callable[[str], None]] = []
        config = answering.config()
        self._registry = QueryRegistry(config.max_standing)
        self._lock = threading.Lock()
        self._last_trials: dict[str, object] = {}  # the last request to add each name whose schema is being tried
        self._warnings = Throttle(WARN_EVERY_S)
        if config.standing_queries:
            self._load(Path(config.standing_queries).expanduser())

    def add(self, query: StandingQuery, on_done: OnDone, *, is_replacing: bool = False) -> StandingQuery:
        """Let a query stand; a JSON schema is tried on another thread first, since that takes seconds.

        Args:
            query: as given.
            on_done: takes the outcome.
            is_replacing: take the place of a query of that name, if there is one.

        Returns:
            The query with all that it left to the parameters.

        Raises:
            NvilaError: it breaks a rule; `on_done` is not called.
        """
        query = complete(query, self._answering.config())
        trial = object()
        with self._lock:
            self._last_trials.pop(query.name, None)
            if query.answer_type == "json":
                self._last_trials[query.name] = trial
        if query.answer_type != "json":
            on_done(self._add(query, is_replacing))
            return query
        kind = parse_kind(query.answer_type, json_schema=query.json_schema)
        assert isinstance(kind, Constrained), "JSON is constrained"

        def on_tried(fault: str) -> None:
            on_done(self._superseded(query.name, trial) or _fault(fault) or self._add(query, is_replacing))

        self._answering.admission.trials.submit(kind.schema, on_tried)
        return query

    def remove(self, name: str) -> str:
        """Forget a query for good; return why that cannot be, or an empty text."""
        with self._lock:
            self._last_trials.pop(name, None)
        error = self._change(name, lambda: self._registry.remove(name))
        if not error:
            self._cancel(name)
        return error

    def enable(self, name: str, is_enabled: bool) -> str:
        """Ask a query again, or no more for now; return why that cannot be, or an empty text."""
        error = self._change(name, lambda: self._registry.enable(name, is_enabled))
        if not error and not is_enabled:
            self._cancel(name)
        return error

    def states(self) -> list[StandingState]:
        """Return how each query stands, in the order in which they were added."""
        with self._lock:
            return self._registry.states()

    def state(self, name: str) -> StandingState | None:
        """Return how the query of that name stands, None where there is none."""
        with self._lock:
            return self._registry.state(name)

    def counts(self) -> dict[str, int]:
        """Return how many queries stand, and the sum of what is counted of them."""
        states = self.states()
        sums = {field.name: sum(getattr(s.counts, field.name) for s in states) for field in fields(EvaluationCounts)}
        return {"standing_queries": len(states)} | {f"standing_{name}": count for name, count in sums.items()}

    def tick(self) -> None:
        """Ask what is due; to be called every `query.TICK_NS`."""
        with self._lock:
            now_ns = self._answering.clock_ns()
            self._report(self._registry.expire(now_ns))
            groups = self._registry.due(now_ns) if self._is_active() else []
        # All at once: a worker that waits would take the first by itself.
        self._answering.submit([self._request(evaluation) for group in groups for evaluation in group])

    def close(self) -> None:
        """End every open event, since nothing is asked any more."""
        with self._lock:
            for state in self._registry.states():
                self._report(self._registry.remove(state.query.name))

    def _load(self, path: Path) -> None:
        for query in read_queries(path):
            try:
                query = complete(query, self._answering.config())
                check_schema(query)
                self._registry.add(query)
            except NvilaError as error:
                raise ConfigError(f"{path}: {query.name}: {error}") from error

    def _superseded(self, name: str, trial: object) -> str:
        with self._lock:
            if self._last_trials.get(name) is trial:
                del self._last_trials[name]
                return ""
        return f"{name!r} was added anew or removed while its schema was tried; add it again"

    def _add(self, query: StandingQuery, is_replacing: bool) -> str:
        error = self._change(query.name, lambda: self._registry.add(query, is_replacing=is_replacing))
        if not error:
            self._cancel(query.name)  # what the query that it replaces still asks
        return error

    def _cancel(self, name: str) -> None:
        self._answering.scheduler.cancel_standing(name, time.monotonic_ns())

    def _change(self, name: str, act: Callable[[], list[Event]]) -> str:
        """Change the registry; return why it cannot be, or an empty text."""
        try:
            with self._lock:
                self._report(act())
        except NvilaError as error:
            return str(error)
        for hear in self.on_changes:
            hear(name)
        return ""

    def _request(self, evaluation: Evaluation) -> Request:
        query = to_query(evaluation.query, self._answering.new_id(), time.monotonic_ns())
        return self._answering.request(query, lambda answer: self._on_answer(evaluation, answer), is_streamed=False)

    def _on_answer(self, evaluation: Evaluation, answer: Answer) -> None:
        reason = answer.finish_reason
        is_odd = not reason.is_answered and reason not in QUIET
        if is_odd and self._warnings.is_due((evaluation.query.name, reason), time.monotonic_ns()):
            LOG.warning("standing=%s finish_reason=%s: %s", evaluation.query.name, reason.name, answer.error)
        with self._lock:
            self._report(self._registry.observe(evaluation, answer, self._answering.clock_ns()))
        for hear in self.on_changes:
            hear(evaluation.query.name)

    def _report(self, events: Sequence[Event]) -> None:
        for take in self.on_events if events else ():
            take(events)


def _fault(fault: str) -> str:
    return str(schema_error(fault)) if fault else ""
