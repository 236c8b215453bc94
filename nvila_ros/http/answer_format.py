"""What may be answered, from the several ways in which clients say it, and how the answer is written.

    response_format     {"type": "text" | "json_object" | "json_schema", ...}    OpenAI
    structured_outputs  {"choice": [...]} or {"json": schema}                    vLLM from 0.12 on
    guided_choice, guided_json, guided_decoding                                  older clients
    answer_type         "when"                                                   here alone: no schema says it

A schema that is a few values (`enum`, `const`, a boolean, a small range of integers), by itself or as the only
property of an object, becomes scored choices: the answer comes at once, and with the probability of each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nvila_ros.http import fields
from nvila_ros.http.errors import ApiError
from nvila_ros.http.fields import invalid
from nvila_ros.prompt.answer_kinds import MAX_SCHEMA_BYTES
from nvila_ros.serving.admission import MAX_CHOICES

REFUSED = ("guided_regex", "guided_grammar", "regex", "ebnf", "json_schema", "structural_tag")
"""Fields of other servers that hold answers to what nothing here holds them to."""
_ANNOTATIONS = frozenset({"title", "description", "type", "$schema", "examples", "default"})
ContentWriter = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class AnswerFormat:
    """Fields of a query, and how what the model says is written.

    Attributes:
        fields: of `types.Query`.
        render: from the text of an answer to the content of the response.
        is_whole: whether that needs the whole text, so that it is not streamed in pieces.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    render: ContentWriter = str
    is_whole: bool = False


def read_format(body: Mapping[str, Any]) -> AnswerFormat:
    """Return what a request allows as its answer.

    Raises:
        ApiError: it says so twice, or in a way that is not understood.
    """
    for name in REFUSED:
        if body.get(name) is not None:
            raise ApiError(
                400,
                f"{name} is not supported; use response_format with a json_schema, or structured_outputs.choice",
                param=name,
                code="unsupported",
            )
    said = [
        (name, read(body[name]))
        for name, read in (
            ("response_format", _response_format),
            ("structured_outputs", lambda value: _structured(value, "structured_outputs")),
            ("guided_decoding", lambda value: _structured(value, "guided_decoding")),
            ("guided_choice", lambda value: _choices(value, "guided_choice")),
            ("guided_json", lambda value: _schema(value, "guided_json")),
            ("answer_type", _answer_type),
        )
        if body.get(name) is not None
    ]
    meant = [(name, form) for name, form in said if form.fields]
    if len(meant) > 1:
        names = " and ".join(name for name, _ in meant)
        raise ApiError(400, f"the answer's form must be given once, got {names}", param=meant[1][0], code="conflict")
    return meant[0][1] if meant else AnswerFormat()


def _response_format(value: Any) -> AnswerFormat:
    given = fields.mapping({"response_format": value}, "response_format")
    kind = given.get("type")
    if kind == "text":
        return AnswerFormat()
    if kind == "json_object":
        return AnswerFormat({"answer_type": "json", "json_schema": '{"type":"object"}'})
    if kind == "json_schema":
        named = fields.mapping(given, "json_schema")
        if not isinstance(named.get("schema"), dict):
            raise invalid("response_format.json_schema.schema", "a JSON schema", named.get("schema"))
        return _schema(named["schema"], "response_format.json_schema.schema")
    raise invalid("response_format.type", "text, json_object or json_schema", kind)


def _answer_type(value: Any) -> AnswerFormat:
    if value != "when":
        raise invalid("answer_type", "when; what else there is, response_format and structured_outputs say", value)
    return AnswerFormat({"answer_type": "when"})


def _structured(value: Any, param: str) -> AnswerFormat:
    given = {k: v for k, v in fields.mapping({param: value}, param).items() if v is not None}
    other = sorted(given.keys() - {"choice", "json"})
    if other or len(given) > 1:
        raise invalid(param, "an object with either choice or json", given)
    if "choice" in given:
        return _choices(given["choice"], f"{param}.choice")
    return _schema(given["json"], f"{param}.json") if given else AnswerFormat()


def _choices(value: Any, param: str) -> AnswerFormat:
    choices = fields.texts(value, param, MAX_CHOICES)
    if len(set(choices)) < len(choices):
        raise invalid(param, "a list of distinct texts", value)
    return AnswerFormat({"answer_type": "choices", "choices": choices})


def _schema(value: Any, param: str) -> AnswerFormat:
    if isinstance(value, str):
        value = fields.parse_object(value.encode("utf-8", "replace"))
    if not isinstance(value, dict):
        raise invalid(param, "a JSON schema", value)
    text = json.dumps(value, separators=(",", ":"))
    if len(text) > MAX_SCHEMA_BYTES:
        raise invalid(param, f"a JSON schema of at most {MAX_SCHEMA_BYTES} bytes", f"{len(text)} bytes")
    name = _only_property(value)
    scored = _scored(_named(value["properties"][name], value) if name is not None else value)
    if scored is None:
        return AnswerFormat({"answer_type": "json", "json_schema": text})
    query_fields, write = scored
    if name is None:
        return AnswerFormat(query_fields, write, is_whole=True)
    key = json.dumps(name, ensure_ascii=False)
    return AnswerFormat(query_fields, lambda answer: f"{{{key}:{write(answer)}}}", is_whole=True)


def _only_property(schema: Mapping[str, Any]) -> str | None:
    """Return the name of an object's one property, which it must have; None of any other schema."""
    known = {"type", "properties", "required", "additionalProperties", "title", "description", "$schema", "$defs"}
    properties = schema.get("properties")
    is_object = schema.get("type") == "object" and schema.keys() <= known and isinstance(properties, dict)
    if not is_object or not isinstance(properties, dict) or len(properties) != 1:
        return None
    (name,) = properties
    is_closed = schema.get("additionalProperties", True) in (True, False)
    return str(name) if schema.get("required") == [name] and is_closed else None


def _named(schema: Any, root: Mapping[str, Any]) -> Any:
    """Return the schema that a reference to `$defs` names, as pydantic writes enumerations; any other as it is."""
    is_reference = isinstance(schema, dict) and schema.keys() - _ANNOTATIONS == {"$ref"}
    place, _, name = str(schema["$ref"]).rpartition("/") if is_reference else ("", "", "")
    named = root.get("$defs")
    return named.get(name, schema) if place == "#/$defs" and isinstance(named, dict) else schema


def _scored(schema: Any) -> tuple[dict[str, Any], ContentWriter] | None:
    """Return the choices that a schema stands for and how one is written as JSON; None where it is no few values."""
    if not isinstance(schema, dict):
        return None
    own = schema.keys() - _ANNOTATIONS
    if own == {"enum"} and isinstance(schema["enum"], list):
        return _enum(schema["enum"], schema.get("type"))
    if schema.get("type") == "boolean" and not own:
        return {"answer_type": "yes_no"}, {"yes": "true", "no": "false"}.__getitem__
    if schema.get("type") == "integer" and own == {"minimum", "maximum"}:
        bounds = {key: schema[key] for key in own}
        if all(type(bound) is int for bound in bounds.values()) and bounds["minimum"] < bounds["maximum"]:
            return {"answer_type": "integer", **bounds}, str
    return None


def _enum(values: list[Any], kind: Any) -> tuple[dict[str, Any], ContentWriter] | None:
    """Return the choices of an enumeration of texts or whole numbers."""
    if kind not in (None, "string", "integer") or not 1 <= len(values) <= MAX_CHOICES:
        return None
    spelled = {str(value): json.dumps(value, ensure_ascii=False) for value in values}
    is_plain = all(
        type(value) in (str, int) and str(value).strip() and fields.is_unicode(str(value)) for value in values
    )
    if not is_plain or len(spelled) < len(values):
        return None
    return {"answer_type": "choices", "choices": tuple(spelled)}, spelled.__getitem__
