"""A scheduler with a caller that asks, works and records the answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nvila_ros.request import Request, RequestState
from nvila_ros.serving.scheduler import Scheduler
from nvila_ros.types import Answer, FinishReason, Query, Timings

S = 1_000_000_000


class SchedulerHarness:
    """A scheduler, and the answers that came out of it."""

    def __init__(self, capacity: int = 3) -> None:
        self.scheduler = Scheduler(capacity)
        self.answers: list[Answer] = []
        self.requests: dict[str, Request] = {}

    def new(self, query_id: str, now_ns: int = 0, **fields: Any) -> Request:
        """Return a request whose answer is recorded."""
        query = Query(query_id=query_id, question="?", accepted_ns=now_ns, **fields)
        self.requests[query_id] = Request(query, self.answers.append)
        return self.requests[query_id]

    def submit(self, query_id: str, now_ns: int = 0, *, is_held: bool = False, **fields: Any) -> bool:
        """Let a query wait; return whether it may."""
        request = self.new(query_id, now_ns, **fields)
        if is_held:
            request.state = RequestState.HELD
        self.scheduler.submit([request], now_ns)
        return (query_id, "REJECTED") not in self.ended()

    def pop(self, now_ns: int = 0) -> list[str]:
        return [request.query.query_id for request in self.scheduler.pop(now_ns)]

    def should_stop(self, query_id: str, now_ns: int = 0) -> FinishReason | None:
        return self.scheduler.should_stop(self.requests[query_id], now_ns)

    def finish(
        self, query_id: str, reason: FinishReason = FinishReason.STOP, work_s: float = 0.0, queue_s: float = 0.0
    ) -> None:
        request = self.requests[query_id]
        timings = Timings(queue_s=queue_s, total_s=queue_s + work_s)
        request.answer = Answer(query=request.query, finish_reason=reason, timings=timings)
        self.scheduler.finish(request, 0)

    def answer_each(self, works_s: Sequence[float], queue_s: float = 0.0, **fields: Any) -> None:
        """Let queries be answered one after the other, each after so many seconds of work."""
        for k, work_s in enumerate(works_s):
            self.submit(f"earlier {k}", **fields)
            self.pop()
            self.finish(f"earlier {k}", work_s=work_s, queue_s=queue_s)

    def ended(self) -> list[tuple[str, str]]:
        return [(answer.query.query_id, answer.finish_reason.name) for answer in self.answers]
