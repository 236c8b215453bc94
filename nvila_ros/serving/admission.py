"""The rules that a query must keep before it may wait for the model: checked at every door, and only here.

In: a query, with the node's settings. Out: nothing, or the rule it breaks. Whether the window holds frames is not
asked: that is known only when the query's turn comes.
"""

from __future__ import annotations

import math

from nvila_ros.config import NodeConfig, bounds
from nvila_ros.errors import QueryError
from nvila_ros.prompt.answer_kinds import parse_kind
from nvila_ros.types import Query
from nvila_ros.video.selection import SAMPLINGS

MAX_CHOICES = 64
MAX_PRIORITY = 255
MAX_NAME_BYTES = 256
_BOUND_BY_NAME = bounds(NodeConfig)


def check_query(query: Query, config: NodeConfig) -> None:
    """Check a query against the rules.

    Raises:
        QueryError: the first rule that it breaks, with the value and the bound.
    """
    _check_text("question", query.question, config.max_question_bytes)
    if len(query.conversation.encode("utf-8", "replace")) > MAX_NAME_BYTES:
        raise QueryError(f"conversation must have at most {MAX_NAME_BYTES} bytes, got {query.conversation[:32]!r}...")
    _check_choices(query, config)
    parse_kind(query.answer_type, query.choices, query.minimum, query.maximum, query.json_schema)
    _check_window(query)
    _check_cameras(query, config)
    _check_number("num_frames", query.num_frames)
    _check_number("max_tokens", query.max_tokens)
    if not 0 <= query.priority <= MAX_PRIORITY:
        raise QueryError(f"priority must lie in [0, {MAX_PRIORITY}], got {query.priority}")
    if query.deadline_ns is not None and query.deadline_ns <= query.accepted_ns:
        raise QueryError("deadline_s must be positive, or zero for none")


def _check_text(name: str, text: str, max_bytes: int) -> None:
    if not text.strip():
        raise QueryError(f"{name} must not be empty")
    num_bytes = len(text.encode("utf-8", "replace"))
    if num_bytes > max_bytes:
        raise QueryError(f"{name} must have at most max_question_bytes = {max_bytes} bytes, got {num_bytes}")


def _check_choices(query: Query, config: NodeConfig) -> None:
    if len(query.choices) > MAX_CHOICES:
        raise QueryError(f"choices must be at most {MAX_CHOICES}, got {len(query.choices)}")
    for choice in query.choices:
        _check_text("a choice", choice, config.max_question_bytes)
    repeated = sorted({choice for choice in query.choices if query.choices.count(choice) > 1})
    if repeated:
        raise QueryError(f"choices must be distinct, got {repeated} more than once")


def _check_window(query: Query) -> None:
    if (query.start_ns is None) != (query.end_ns is None):
        raise QueryError("start and end must be given both, or neither for the last window_s seconds")
    if query.start_ns is not None and query.end_ns is not None and query.end_ns < query.start_ns:
        raise QueryError(f"end must not lie before start, got {query.end_ns} ns < {query.start_ns} ns")
    _check_number("window_s", query.window_s)
    if not 0 <= query.ago_end_s <= query.ago_start_s < math.inf:
        raise QueryError(
            f"ago_start and ago_end must be seconds before the newest frame, the start the longer ago, got "
            f"{query.ago_start_s:g} and {query.ago_end_s:g}"
        )
    if query.sampling not in SAMPLINGS:
        raise QueryError(f"sampling must be one of {list(SAMPLINGS)}, got {query.sampling!r}")


def _check_cameras(query: Query, config: NodeConfig) -> None:
    unknown = sorted(set(query.cameras) - set(config.cameras))
    if unknown:
        raise QueryError(f"unknown cameras {unknown}; this node has {list(config.cameras)}")
    if len(set(query.cameras)) != len(query.cameras):
        raise QueryError(f"cameras must be distinct, got {list(query.cameras)}")
    if 0 < query.num_frames < len(query.cameras):
        raise QueryError(
            f"num_frames must be at least one per camera, got {query.num_frames} for {list(query.cameras)}; "
            "ask for more frames or name fewer cameras"
        )


def _check_number(name: str, value: float) -> None:
    bound = _BOUND_BY_NAME[name]
    low, high = bound.low or 0, bound.high or math.inf
    if not low <= value <= high:  # a NaN lies in no range
        raise QueryError(f"{name} must lie in [{low:g}, {high:g}] {bound.unit}, got {value:g}")
