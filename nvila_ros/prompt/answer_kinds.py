"""Kinds of answers: free text, one of a few choices, or JSON of a schema; parsed from the fields of a request.

    answer_type   fields it takes      becomes
    text                               FreeText: any text
    yes_no                             Scored: "yes" and "no", each in several spellings
    choices       choices              Scored: each as it is written
    integer       minimum, maximum     Scored: up to MAX_SCORED numbers; Constrained: more
    json          json_schema          Constrained: compact JSON that the schema allows
    tool          choices              Scored: every call that they allow, as `tool_calls` lists them
    when                               Located: intervals in which the event that the question names happens

Empty is `choices` where there are any, else `text`. A scored answer comes with the probability of every choice; a
constrained one is decoded token by token, each one that the schema allows.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from nvila_ros.errors import QueryError
from nvila_ros.prompt.tool_calls import list_calls

ANSWER_TYPES = ("text", "yes_no", "choices", "integer", "json", "when", "tool")
MAX_SCORED = 64  # numbers that are scored one by one; more are decoded
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")  # keywords of JSON schemas
VALUES = ("const", "default", "enum", "examples")  # whose values are no schemas
MAX_INTEGER = 2**53  # up to here a number is the same in every reader of JSON
MAX_SCHEMA_BYTES = 16_384
MAX_TYPE_CHARACTERS = 32
MAX_SCHEMA_DEPTH = 48  # braces and brackets in each other


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer among several: the name it is reported under, and the texts that mean it, all distinct."""

    name: str
    spellings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FreeText:
    """Any text."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The likeliest of some choices."""

    choices: tuple[Choice, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the choices, in order."""
        return tuple(choice.name for choice in self.choices)

    @property
    def spellings(self) -> tuple[str, ...]:
        """The spellings of all choices, one choice after another: the texts to score."""
        return tuple(spelling for choice in self.choices for spelling in choice.spellings)

    @property
    def owners(self) -> np.ndarray:
        """Index of the choice of each of `spellings`, (S,)."""
        return np.repeat(np.arange(len(self.choices)), [len(choice.spellings) for choice in self.choices])

    def combine(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the probability of each choice, (C,) float64, from those of all spellings, (S,).

        An answer has one spelling, so those of a choice exclude each other and add up.
        """
        owners = self.owners
        assert probabilities.shape == owners.shape, f"{len(owners)} spellings, got {probabilities.shape}"
        return np.bincount(owners, weights=probabilities, minlength=len(self.choices))


@dataclass(frozen=True, slots=True)
class Constrained:
    """Compact JSON that a schema allows; the schema is JSON text, checked, in one spelling."""

    schema: str


@dataclass(frozen=True, slots=True)
class Located:
    """Intervals of a clip, as JSON; see `serving.localization`."""


AnswerKind = FreeText | Scored | Constrained | Located
"""A kind of answer."""

# Published NVILA begins a sentence, nvila-tiny was trained on bare words.
YES_NO = Scored(
    tuple(
        Choice(word, tuple(s + end for s in (word, word.capitalize()) for end in ("", "."))) for word in ("yes", "no")
    )
)


LIKELY = 0.5
"""Probability from which on an event of a `Located` answer happens."""


def check_lengths(answer_type: str, json_schema: str) -> None:
    """Refuse fields by their length, before any other work on them.

    Raises:
        QueryError: a field is longer than any that is known.
    """
    if len(answer_type) > MAX_TYPE_CHARACTERS:
        raise QueryError(f"answer_type must be one of {list(ANSWER_TYPES)}, got {len(answer_type)} characters")
    num_bytes = len(json_schema) if json_schema.isascii() else len(json_schema.encode("utf-8", "replace"))
    if num_bytes > MAX_SCHEMA_BYTES:
        raise QueryError(
            f"json_schema must have at most {MAX_SCHEMA_BYTES} bytes, got {num_bytes}; ask for less at once"
        )


def parse_kind(
    answer_type: str = "", choices: Sequence[str] = (), minimum: int = 0, maximum: int = 0, json_schema: str = ""
) -> AnswerKind:
    """Return the kind of answer that a request asks for.

    Raises:
        QueryError: the type is unknown, a field is given that the type does not take or lacks one that it does, the
            range is empty or too wide, or the schema is too large or not a JSON object. Whether the schema can be
            decoded is known only to `grammar`.
    """
    check_lengths(answer_type, json_schema)
    answer_type = answer_type or ("choices" if choices else "text")
    if answer_type not in ANSWER_TYPES:
        near = difflib.get_close_matches(answer_type, ANSWER_TYPES, n=2) or list(ANSWER_TYPES)
        raise QueryError(f"unknown answer_type {answer_type!r}; did you mean one of {near}")
    _check_fields(answer_type, choices=list(choices), minimum=minimum, maximum=maximum, json_schema=json_schema)
    if answer_type == "yes_no":
        return YES_NO
    if answer_type == "choices":
        return Scored(tuple(Choice(text, (text,)) for text in choices))
    if answer_type == "tool":
        return _tool(choices)
    if answer_type == "when":
        return Located()
    if answer_type == "integer":
        return _integer(minimum, maximum)
    return _json(json_schema) if answer_type == "json" else FreeText()


def _check_fields(answer_type: str, **fields: Any) -> None:
    """Refuse fields that the type does not take; a request that has them meant another type."""
    owners = {
        "choices": ("choices", "tool"),
        "minimum": ("integer",),
        "maximum": ("integer",),
        "json_schema": ("json",),
    }
    for name, value in fields.items():
        if value and answer_type not in owners[name]:
            types = " or ".join(map(repr, owners[name]))
            raise QueryError(
                f"{name} goes with answer_type {types} alone, got {_shown(value)} with {answer_type!r}; "
                "leave it out or change the type"
            )
    for name in ("choices", "json_schema"):
        if answer_type in owners[name] and not fields[name]:
            raise QueryError(f"answer_type {answer_type!r} needs {name}, got none; fill it in or change the type")


def _tool(tools: Sequence[str]) -> Scored:
    calls = list_calls(tools)
    if not 2 <= len(calls) <= MAX_SCORED:
        raise QueryError(
            f"tools must allow 2 to {MAX_SCORED} calls in all, got {len(calls)}; add none or leave some out"
        )
    return Scored(tuple(Choice(call, (call,)) for call in calls))


def _integer(minimum: int, maximum: int) -> AnswerKind:
    if minimum >= maximum:
        raise QueryError(f"minimum must lie below maximum, got {minimum} and {maximum}; give the range of the answer")
    if max(abs(minimum), abs(maximum)) > MAX_INTEGER:
        raise QueryError(
            f"minimum and maximum must lie in [{-MAX_INTEGER}, {MAX_INTEGER}], got {minimum} and {maximum}; "
            "give a narrower range"
        )
    if maximum - minimum < MAX_SCORED:
        return Scored(tuple(Choice(str(k), (str(k),)) for k in range(minimum, maximum + 1)))
    return Constrained(_dump({"type": "integer", "minimum": minimum, "maximum": maximum}))


def _json(text: str) -> Constrained:
    try:
        schema = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise QueryError(f"json_schema must be JSON, but {reason} in {_shown(text)}; mend it") from error
    if not isinstance(schema, dict):
        raise QueryError(f"json_schema must be a JSON object, got {_shown(schema)}; write a schema such as {{}}")
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        raise QueryError(f"json_schema must be at most {MAX_SCHEMA_DEPTH} levels deep; flatten it")
    for key, bound in _bounds(schema):
        if abs(bound) > MAX_INTEGER:
            raise QueryError(f"json_schema's {key} must lie within 2^53, got {_shown(bound)}; give a narrower range")
    if "x-guidance" in schema:
        raise QueryError("json_schema must not have 'x-guidance', which this package sets; leave it out")
    return Constrained(_dump(schema))


def schema_error(reason: str) -> QueryError:
    """Return the error of a schema that no grammar can be made of."""
    return QueryError(f"json_schema must be one that answers can be held to, but {reason}; simplify it")


def _bounds(value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numeric bounds of a schema, whose depth is bounded, with their keywords."""
    inner: Iterable[Any] = value if isinstance(value, list) else ()
    if isinstance(value, dict):
        yield from ((key, value[key]) for key in BOUNDS if isinstance(value.get(key), int | float))
        inner = (each for key, each in value.items() if key not in VALUES)
    for each in inner:
        yield from _bounds(each)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _depth(value: Any) -> int:
    """Return the nesting depth of lists and objects, level by level instead of recursively."""
    depth, level = 0, [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return depth


def _dump(schema: dict[str, Any]) -> str:
    return json.dumps(schema, separators=(",", ":"))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
