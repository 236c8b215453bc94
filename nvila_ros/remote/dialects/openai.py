"""OpenAI's own API, which every server speaks: choices are the values of an object's only property."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nvila_ros.errors import QueryError
from nvila_ros.prompt.answer_kinds import AnswerKind, Constrained, FreeText, Scored
from nvila_ros.remote.reply import RemoteReply
from nvila_ros.types import Query
from nvila_ros.visual.frame_encoder import FrameLike

NAME = "answer"
"""Of the property: the root of a schema must be an object there."""


@dataclass(frozen=True, slots=True)
class HeldAnswer:
    """How a server is held to a kind of answer.

    Attributes:
        fields: of the request.
        written: every spelling of the choices, as the server writes it; empty where there are none.
        read: from the content of the response to the text of the answer.
        is_pieced: whether pieces of the content are pieces of the text.
        num_skipped: returns how many bytes of the content stand before the choice.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    written: tuple[str, ...] = ()
    read: Callable[[str], str] = str
    is_pieced: bool = True
    num_skipped: Callable[[str], int] = lambda content: 0


class OpenAiDialect:
    """How a question is written, and what comes back."""

    name = "openai"
    token_limit = "max_completion_tokens"

    def picture(self, uri: str, frame: FrameLike) -> dict[str, Any]:
        """Return the part of a message that shows a frame."""
        return {"type": "image_url", "image_url": {"url": uri}}

    def extra(self, query: Query, remaining_s: float | None) -> dict[str, Any]:
        """Return further fields of a request; `remaining_s` is the time until the deadline."""
        return {}

    def hold(self, query: Query, kind: AnswerKind) -> HeldAnswer:
        """Return how the server is held to what may be answered.

        Raises:
            QueryError: it cannot be.
        """
        if isinstance(kind, Scored):
            return self.hold_choices(kind)
        if isinstance(kind, Constrained):
            return self.hold_schema(json.loads(kind.schema))
        if isinstance(kind, FreeText):
            return HeldAnswer()
        raise QueryError(
            f"answer_type {query.answer_type!r} is not available on a server of dialect {self.name}, since its API has "
            "no place for it; ask yes_no about windows, ask another node, or run the model here"
        )

    def hold_choices(self, kind: Scored) -> HeldAnswer:
        """Return how the server is held to choices."""
        schema = {"type": "string", "enum": list(kind.names)}
        written = tuple(json.dumps(text, ensure_ascii=False) for text in kind.spellings)
        fields = _schema_fields(_wrapped(schema))
        fields["response_format"]["json_schema"]["strict"] = True  # which OpenAI does only of closed objects
        return HeldAnswer(fields, written, _unwrap_text, False, _value_start)

    def hold_schema(self, schema: dict[str, Any]) -> HeldAnswer:
        """Return how the server is held to a JSON schema."""
        if schema.get("type") == "object":
            return HeldAnswer(_schema_fields(schema))
        return HeldAnswer(_schema_fields(_wrapped(schema)), read=_unwrap_json, is_pieced=False)

    def read(self, chunk: Mapping[str, Any], reply: RemoteReply) -> None:
        """Take what a chunk says beyond OpenAI's API."""


DIALECT = OpenAiDialect()


def _schema_fields(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": NAME, "schema": schema}}}


def _wrapped(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {NAME: schema}, "required": [NAME], "additionalProperties": False}


def _unwrap_text(content: str) -> str:
    value = _unwrap_json(content)
    return str(json.loads(value)) if value.endswith('"') else value


def _unwrap_json(content: str) -> str:
    """Return the value of the property as compact JSON; of what was cut off, what there is of it."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return content.encode()[_value_start(content) :].decode(errors="replace").strip()
    value = found.get(NAME) if isinstance(found, dict) else found
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _value_start(content: str) -> int:
    """Return how many bytes stand before the property's value, whatever blanks the server writes."""
    key, _, rest = content.partition(f'"{NAME}"')
    blank = len(rest) - len(rest.lstrip(" \t\r\n:"))
    return len(f'{key}"{NAME}"{rest[:blank]}'.encode()) if rest else 0
