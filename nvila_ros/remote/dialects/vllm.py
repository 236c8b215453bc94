"""vLLM, from 0.12 on: choices by `structured_outputs`, of any spelling; a JSON schema may have any root."""

from __future__ import annotations

from typing import Any

from nvila_ros.prompt.answer_kinds import Scored
from nvila_ros.remote.dialects.openai import HeldAnswer, OpenAiDialect


class VllmDialect(OpenAiDialect):
    """How vLLM is asked."""

    name = "vllm"
    token_limit = "max_tokens"

    def hold_choices(self, kind: Scored) -> HeldAnswer:
        """Return how the server is held to choices."""
        return HeldAnswer({"structured_outputs": {"choice": list(kind.spellings)}}, kind.spellings, str.strip, False)

    def hold_schema(self, schema: dict[str, Any]) -> HeldAnswer:
        """Return how the server is held to a JSON schema."""
        return HeldAnswer({"structured_outputs": {"json": schema}})


DIALECT = VllmDialect()
