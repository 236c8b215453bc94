"""What an answer says, in a form that can be compared: text in, one value and its probability out.

Choices are scored, so their probability is known; an answer without one is taken as certain.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from nvila_ros.prompt.answer_kinds import LIKELY, YES_NO
from nvila_ros.standing.query import StandingQuery
from nvila_ros.types import Answer, FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One answer that counts.

    Attributes:
        value: equal for answers that say the same.
        probability: of the query's target; without a target, of the value itself. 0 to 1.
        stamp_ns: capture of the newest frame.
        answer: as it came.
    """

    value: str
    probability: float
    stamp_ns: int
    answer: Answer


def read_answer(query: StandingQuery, answer: Answer) -> Observation | None:
    """Return what an answer says, or None where it does not count: the model did not speak, or not to the question."""
    if not answer.finish_reason.is_answered or not answer.frames:
        return None
    value = _read_text(query, answer.text)
    if value is None or _may_be_cut(query, answer):
        return None
    probability = _probability(answer, _condition(query, value), value)
    return Observation(value=value, probability=probability, stamp_ns=answer.frames[-1].stamp_ns, answer=answer)


def _may_be_cut(query: StandingQuery, answer: Answer) -> bool:
    """Whether more digits might have followed; a text that is cut off is at least how it begins, other JSON is none."""
    is_cut = answer.finish_reason is FinishReason.LENGTH and answer.text[-1:].isdigit()
    return is_cut and query.answer_type in ("integer", "json")


def _read_text(query: StandingQuery, text: str) -> str | None:
    if query.answer_type == "integer":
        number = _integer(text)
        return str(number) if number is not None and query.minimum <= number <= query.maximum else None
    if query.answer_type == "json":
        return _canonical_json(text)
    if query.answer_type == "tool":
        return text  # scored, so one of the calls
    if query.answer_type == "when":
        return YES_NO.names[float(json.loads(text)["happens"]) < LIKELY]
    folded = " ".join(text.casefold().split()).rstrip(".")
    if query.answer_type == "text":
        return folded
    known = YES_NO.names if query.answer_type == "yes_no" else query.choices
    return text if text in known else next((choice for choice in known if choice.casefold() == folded), None)


def _condition(query: StandingQuery, value: str) -> Callable[[str], bool]:
    """Return which answers count towards the probability."""
    if not query.has_condition:
        return lambda said: said == value
    if query.answer_type == "integer":
        return lambda said: int(said) >= int(query.target)
    target = query.target or YES_NO.names[0]
    return lambda said: said == target


def _probability(answer: Answer, holds: Callable[[str], bool], value: str) -> float:
    if not answer.probabilities:
        return float(holds(value))
    return math.fsum(p for said, p in zip(answer.choices, answer.probabilities, strict=True) if holds(said))


def _integer(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\s*[+-]?[0-9]{1,16}\s*", text) else None


def _canonical_json(text: str) -> str | None:
    try:
        return json.dumps(json.loads(text), sort_keys=True)
    except (ValueError, RecursionError):
        return None
