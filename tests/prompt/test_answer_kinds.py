"""What a request allows as its answer, and every way to ask for it wrongly."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import QueryError
from nvila_ros.prompt.answer_kinds import (
    MAX_INTEGER,
    MAX_SCHEMA_BYTES,
    MAX_SCHEMA_DEPTH,
    MAX_SCORED,
    YES_NO,
    Choice,
    Constrained,
    FreeText,
    Scored,
    parse_kind,
)

integers = st.integers(-MAX_INTEGER, MAX_INTEGER)
names = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=6, unique=True)
scored = st.lists(st.builds(Choice, st.text(), names.map(tuple)), min_size=1, max_size=5).map(tuple).map(Scored)


def test_nothing_asked_for_is_free_text() -> None:
    assert parse_kind() == parse_kind("text") == FreeText()


@given(choices=names)
def test_choices_are_scored_as_they_are_written(choices: list[str]) -> None:
    kind = parse_kind("choices", choices)

    assert kind == parse_kind(choices=choices)
    assert isinstance(kind, Scored)
    assert kind.names == kind.spellings == tuple(choices)


def test_yes_and_no_are_known_as_either_model_writes_them() -> None:
    kind = parse_kind("yes_no")

    assert kind is YES_NO
    assert kind.names == ("yes", "no")
    assert {"Yes", "yes", "No.", "no"} < set(kind.spellings)
    assert len(set(kind.spellings)) == len(kind.spellings)


@given(ends=st.tuples(integers, integers).filter(lambda ends: ends[0] + MAX_SCORED <= ends[1]))
def test_few_integers_are_scored_and_many_decoded(ends: tuple[int, int]) -> None:
    kind = parse_kind("integer", minimum=ends[0], maximum=ends[1])

    assert isinstance(kind, Constrained)
    assert json.loads(kind.schema) == {"type": "integer", "minimum": ends[0], "maximum": ends[1]}
    few = parse_kind("integer", minimum=ends[0], maximum=ends[0] + MAX_SCORED - 1)
    assert few.names == tuple(map(str, range(ends[0], ends[0] + MAX_SCORED)))
    assert isinstance(parse_kind("integer", minimum=ends[0], maximum=ends[0] + MAX_SCORED), Constrained)


@given(kind=scored, data=st.data())
def test_probabilities_of_spellings_add_up_under_their_name(kind: Scored, data: st.DataObject) -> None:
    num = len(kind.spellings)
    probability_S = np.array(data.draw(st.lists(st.floats(0, 1), min_size=num, max_size=num)))

    rest = iter(probability_S)
    want = [sum(next(rest) for _ in choice.spellings) for choice in kind.choices]

    np.testing.assert_allclose(kind.combine(probability_S), want, atol=1e-12)


def test_one_schema_has_one_spelling_and_keeps_the_order_of_its_properties() -> None:
    first = parse_kind("json", json_schema='{"properties": {"b": true,\n "a": {"const": "\\u00e9"}}}')

    assert first == parse_kind("json", json_schema='{"properties":{"b":true,"a":{"const":"é"}}}')
    assert first != parse_kind("json", json_schema='{"properties":{"a":{"const":"é"},"b":true}}')


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer_type": "yesno"}, r"unknown answer_type 'yesno'; did you mean one of \['yes_no'\]"),
        ({"answer_type": "float"}, "text.*yes_no.*choices.*integer.*json"),
        ({"answer_type": "choices"}, "'choices' needs choices"),
        ({"answer_type": "json"}, "'json' needs json_schema"),
        (
            {"answer_type": "yes_no", "choices": ["a"]},
            r"choices goes with .*'choices' or 'tool' alone, got \['a'\] with 'yes_no'",
        ),
        ({"choices": ["a"], "json_schema": "{}"}, "json_schema goes with .*'json' alone"),
        ({"answer_type": "json", "json_schema": "{}", "maximum": 3}, "maximum goes with .*'integer' alone, got 3"),
        ({"minimum": 3}, "minimum goes with .*'integer' alone, got 3 with 'text'"),
        ({"answer_type": "integer"}, "minimum must lie below maximum, got 0 and 0"),
        ({"answer_type": "integer", "minimum": 7, "maximum": 3}, "got 7 and 3"),
        ({"answer_type": "integer", "maximum": MAX_INTEGER + 1}, f"must lie in .*{MAX_INTEGER}"),
    ],
)
def test_fields_that_do_not_fit_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        parse_kind(**fields)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("{", "must be JSON, but Expecting"),
        ("{'type': 'string'}", "must be JSON"),
        ('{"minimum": NaN}', "NaN is no number of JSON"),
        ("[" * 10_000, "must be JSON, but"),
        ("true", "must be a JSON object, got True"),
        ('"' + "x" * MAX_SCHEMA_BYTES + '"', f"at most {MAX_SCHEMA_BYTES} bytes, got {MAX_SCHEMA_BYTES + 2}"),
        ('{"not":' * (MAX_SCHEMA_DEPTH + 1) + "1" + "}" * (MAX_SCHEMA_DEPTH + 1), f"at most {MAX_SCHEMA_DEPTH} levels"),
        ('{"x-guidance": {"lenient": true}}', "x-guidance"),
        ('{"type": "integer", "minimum": 10000000000000000}', r"minimum must lie within 2\^53, got 10000000000000000;"),
        ('{"maximum": 1' + "0" * 400 + "}", r"maximum must lie within 2\^53, got 10+\.\.\.;"),
        ('{"properties": {"n": {"anyOf": [{"exclusiveMaximum": -1e300}]}}}', "exclusiveMaximum must lie within"),
    ],
)
def test_what_is_no_schema_is_refused_before_anything_is_compiled(schema: str, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        parse_kind("json", json_schema=schema)


@pytest.mark.parametrize(
    "schema",
    [
        '{"properties": {"minimum": {"type": "string"}}}',
        '{"enum": [{"minimum": 1e300}]}',
        '{"maximum": 9007199254740992}',
    ],
)
def test_bounds_of_a_schema_are_told_from_what_only_looks_like_them(schema: str) -> None:
    assert isinstance(parse_kind("json", json_schema=schema), Constrained)


@given(schema=st.text())
def test_any_text_is_a_schema_or_a_query_error(schema: str) -> None:
    try:
        kind = parse_kind("json", json_schema=schema)
    except QueryError:
        return
    assert isinstance(json.loads(kind.schema), dict)
