"""Our own door: frames keep cameras and stamps, so that a clip is shown as one; probabilities and counts come whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvila_ros.prompt.answer_kinds import AnswerKind, Located, Scored
from nvila_ros.remote.dialects.openai import NAME, HeldAnswer, OpenAiDialect
from nvila_ros.remote.reply import RemoteReply
from nvila_ros.types import Query
from nvila_ros.visual.frame_encoder import FrameLike


class NvilaDialect(OpenAiDialect):
    """How another node is asked."""

    name = "nvila"
    token_limit = "max_tokens"

    def picture(self, uri: str, frame: FrameLike) -> dict[str, Any]:
        """Return the part of a message that shows a frame."""
        about = {"camera": frame.camera, "stamp_ns": str(frame.stamp_ns)}
        return {**super().picture(uri, frame), "nvila": about}

    def extra(self, query: Query, remaining_s: float | None) -> dict[str, Any]:
        """Return further fields of a request."""
        deadline = {} if remaining_s is None else {"deadline_s": min(max(remaining_s, 0.001), 3600.0)}
        return {"priority": query.priority, **deadline}

    def hold(self, query: Query, kind: AnswerKind) -> HeldAnswer:
        """Return how the server is held to what may be answered; it makes the same kind of that."""
        if query.answer_type == "yes_no":
            return _whole(_schema({"type": "boolean"}))
        if query.answer_type == "integer":
            return _whole(_schema({"type": "integer", "minimum": query.minimum, "maximum": query.maximum}))
        if isinstance(kind, Located):
            return _whole({"answer_type": "when"})
        return super().hold(query, kind)

    def hold_choices(self, kind: Scored) -> HeldAnswer:
        """Return how the server is held to choices; it scores each as a whole."""
        return _whole({"structured_outputs": {"choice": list(kind.names)}})

    def hold_schema(self, schema: dict[str, Any]) -> HeldAnswer:
        """Return how the server is held to a JSON schema."""
        return HeldAnswer(_schema(schema))

    def read(self, chunk: Mapping[str, Any], reply: RemoteReply) -> None:
        """Take what a chunk says beyond OpenAI's API."""
        extra = chunk.get("nvila")
        if isinstance(extra, dict):
            reply.take_extra(extra)


DIALECT = NvilaDialect()


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": NAME, "schema": schema}}}


def _whole(fields: dict[str, Any]) -> HeldAnswer:
    return HeldAnswer(fields, is_pieced=False)
