"""A scheduler with somebody who asks, works and takes note of the answers."""

from __future__ import annotations

from typing import Any

from nvila_ros.serving.scheduler import Scheduler, Ticket
from nvila_ros.types import Answer, FinishReason, Query, Timings

S = 1_000_000_000


class Desk:
    """A scheduler, and the answers that came out of it."""

    def __init__(self, capacity: int = 3) -> None:
        self.scheduler = Scheduler(capacity)
        self.answers: list[Answer] = []
        self.queries: dict[str, Query] = {}

    def submit(self, query_id: str, now_ns: int = 0, **fields: Any) -> bool:
        """Let a query wait; returns whether it may."""
        query = Query(query_id=query_id, question="?", accepted_ns=now_ns, **fields)
        self.queries[query_id] = query
        self.scheduler.submit([Ticket(query=query, on_answer=self.answers.append)], now_ns)
        return (query_id, "REJECTED") not in self.told()

    def pop(self, now_ns: int = 0) -> list[str]:
        return [ticket.query.query_id for ticket in self.scheduler.pop(now_ns)]

    def should_stop(self, query_id: str, now_ns: int = 0) -> FinishReason | None:
        return self.scheduler.should_stop(query_id, now_ns)

    def finish(self, query_id: str, reason: FinishReason = FinishReason.STOP, work_s: float = 0.0) -> None:
        query = self.queries[query_id]
        answer = Answer(query=query, finish_reason=reason, timings=Timings(total_s=work_s))
        self.scheduler.finish(answer, 0)

    def told(self) -> list[tuple[str, str]]:
        return [(answer.query.query_id, answer.finish_reason.name) for answer in self.answers]
