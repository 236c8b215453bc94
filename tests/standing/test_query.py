from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.config import NodeConfig
from nvila_ros.errors import ConfigError, NvilaError, QueryError
from nvila_ros.standing.query import StandingQuery, complete, to_query
from nvila_ros.types import NS_PER_S

CONFIG = NodeConfig(cameras=("front", "rear"))


def standing(**changes: Any) -> StandingQuery:
    return StandingQuery(**{"name": "door", "question": "Is the door open?"} | changes)


INTEGER = {"answer_type": "integer", "minimum": 0, "maximum": 9}
CHOICES = {"answer_type": "choices", "choices": ("red", "green")}


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"name": ""}, "name must be 1 to 64"),
        ({"name": "a b"}, "name must be 1 to 64"),
        ({"name": "x" * 65}, "name must be 1 to 64"),
        ({"name": "-x"}, "name must be 1 to 64"),
        ({"question": " \n"}, "question must not be empty"),
        ({"answer_type": "boolean"}, "answer_type must be one of"),
        ({"choices": ("a", "b")}, "choices goes with answer_type 'choices'"),
        ({"answer_type": "choices"}, "needs choices"),
        ({"answer_type": "choices", "choices": ("red",)}, "choices must be at least two"),
        ({"answer_type": "choices", "choices": (True, False)}, "in YAML, yes, no and numbers are texts in quotes"),
        ({"answer_type": "choices", "choices": ("a", "a")}, "choices must be distinct"),
        ({"minimum": 1}, "minimum goes with"),
        ({"answer_type": "integer"}, "minimum must lie below maximum"),
        ({"json_schema": "{}"}, "json_schema goes with"),
        ({"answer_type": "json", "json_schema": "[]"}, "json_schema must be a JSON object"),
        ({"rate_hz": 0.0}, "rate_hz must lie in"),
        ({"rate_hz": float("nan")}, "rate_hz must be a finite number"),
        ({"rate_hz": "1"}, "rate_hz must be of type float"),
        ({"sampling": "all"}, "sampling must be one of"),
        ({"cameras": ("front", "front")}, "cameras must be distinct"),
        ({"trigger": "edge"}, "trigger must be one of"),
        ({"target": "yes"}, "target goes with rising and falling"),
        ({"trigger": "rising", "target": "maybe"}, "target must be one of"),
        ({"trigger": "rising", "answer_type": "text"}, "rising must watch an answer of yes_no, choices, integer"),
        ({"trigger": "rising", "answer_type": "when", "target": "soon"}, r"target must be one of \['', 'yes', 'no'\]"),
        ({"trigger": "falling", **CHOICES}, r"target must be one of \['red', 'green'\]"),
        ({"trigger": "rising", **INTEGER}, r"target must be a number in \[0, 9\]"),
        ({"trigger": "rising", "target": "10", **INTEGER}, r"target must be a number in \[0, 9\]"),
        ({"trigger": "rising", "target": "1e1", **INTEGER}, r"target must be a number in \[0, 9\]"),
        ({"trigger": "rising", "threshold": 0.3, "hysteresis": 0.3}, "hysteresis must be below threshold"),
        ({"debounce_n": 3, "debounce_m": 2}, "debounce_n must be at most debounce_m"),
        ({"debounce_m": 65}, "debounce_m must lie in"),
        ({"trigger": "every", "debounce_m": 2}, "every reports each answer by itself"),
        ({"rate_hz": 0.01}, "stale_s must be at least two periods = 200 s"),
        ({"priority": 256}, "priority must lie in"),
        ({"enabled": 1}, "enabled must be of type bool"),
    ],
)
def test_query_that_breaks_a_rule_is_refused_by_name(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        standing(**changes)


def test_what_is_left_at_zero_is_filled_in_by_parameter() -> None:
    query = complete(standing(), CONFIG)

    assert (query.cameras, query.num_frames, query.window_s, query.max_tokens) == (("front", "rear"), 2, 2.0, 64)


def test_when_is_asked_of_a_clip() -> None:
    query = standing(answer_type="when", cameras=("front",))

    assert complete(query, CONFIG).num_frames == 8
    assert complete(dataclasses.replace(query, num_frames=3), CONFIG).num_frames == 3


def test_what_is_given_is_kept() -> None:
    given_ = {"cameras": ("rear",), "num_frames": 3, "window_s": 0.5, "max_tokens": 7}

    query = complete(standing(**given_), CONFIG)

    assert {name: getattr(query, name) for name in given_} == given_


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"cameras": ("left",)}, "unknown cameras"),
        ({"answer_type": "when"}, r"when is asked of one camera, got \['front', 'rear'\]"),
        ({"question": "x" * 5000}, "max_question_bytes"),
        ({"answer_type": "choices", "choices": tuple(map(str, range(65)))}, "choices must be at most 64"),
    ],
)
def test_query_that_no_asking_could_keep_is_refused_before_the_first(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(QueryError, match=rule):
        complete(standing(**changes), CONFIG)


def test_asking_carries_everything_that_the_model_must_know() -> None:
    query = complete(standing(priority=3, deadline_s=1.5, sampling="recent", **INTEGER), CONFIG)

    asked = to_query(query, "q7", 10 * NS_PER_S)

    assert (asked.query_id, asked.question, asked.standing, asked.priority) == ("q7", query.question, "door", 3)
    assert (asked.answer_type, asked.minimum, asked.maximum, asked.sampling) == ("integer", 0, 9, "recent")
    assert (asked.accepted_ns, asked.deadline_ns) == (10 * NS_PER_S, 11_500_000_000)
    assert asked.clip == query.clip


def test_no_deadline_is_none() -> None:
    assert to_query(standing(), "q", 5).deadline_ns is None


VALUES = st.none() | st.integers() | st.text() | st.floats() | st.booleans() | st.tuples(st.integers() | st.text())


@given(st.dictionaries(st.sampled_from(sorted(StandingQuery.__slots__)), VALUES))
def test_any_values_make_a_query_or_a_clear_error(changes: dict[str, Any]) -> None:
    with contextlib.suppress(NvilaError):
        query = standing(**changes)
        assert query.period_ns > 0
        assert to_query(query, "q", 0).standing == query.name
