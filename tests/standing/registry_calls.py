"""A registry with one query as a rule, asked and answered in one line."""

from __future__ import annotations

from typing import Any

from nvila_ros.standing.event import Event
from nvila_ros.standing.query import StandingQuery
from nvila_ros.standing.registry import Evaluation, EvaluationCounts, QueryRegistry
from tests.standing.obvious import S, yes_no_answer


def standing(name: str = "door", **changes: Any) -> StandingQuery:
    return StandingQuery(**{"name": name, "question": "Is it?", "trigger": "rising"} | changes)


def new_book(*queries: StandingQuery, capacity: int = 8) -> QueryRegistry:
    book = QueryRegistry(capacity)
    for query in queries:
        book.add(query)
    return book


def tick(book: QueryRegistry, seconds: float) -> list[list[Evaluation]]:
    now_ns = round(seconds * S)
    assert book.expire(now_ns) == []
    return book.due(now_ns)


def names(groups: list[list[Evaluation]]) -> list[list[str]]:
    return [[evaluation.query.name for evaluation in group] for group in groups]


def ask_and_answer(book: QueryRegistry, seconds: float, yes: float = 1.0, stamp_s: float | None = None) -> list[Event]:
    now_ns = round(seconds * S)
    events = book.expire(now_ns)
    ((evaluation,),) = book.due(now_ns)
    stamp_ns = round((seconds if stamp_s is None else stamp_s) * S)
    return events + book.observe(evaluation, yes_no_answer(evaluation.query, yes, stamp_ns), now_ns)


def counts(book: QueryRegistry) -> EvaluationCounts:
    (state,) = book.states()
    return state.counts
