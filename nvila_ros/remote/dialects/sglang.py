"""SGLang, which serves NVILA itself: choices by a regular expression; a JSON schema may have any root."""

from __future__ import annotations

import re
from typing import Any

from nvila_ros.prompt.answer_kinds import Scored
from nvila_ros.remote.dialects.openai import NAME, HeldAnswer, OpenAiDialect


class SglangDialect(OpenAiDialect):
    """How SGLang is asked."""

    name = "sglang"
    token_limit = "max_tokens"

    def hold_choices(self, kind: Scored) -> HeldAnswer:
        """Return how the server is held to choices."""
        pattern = "|".join(re.escape(text) for text in kind.spellings)
        return HeldAnswer({"regex": f"({pattern})"}, kind.spellings, str.strip, False)

    def hold_schema(self, schema: dict[str, Any]) -> HeldAnswer:
        """Return how the server is held to a JSON schema."""
        return HeldAnswer({"response_format": {"type": "json_schema", "json_schema": {"name": NAME, "schema": schema}}})


DIALECT = SglangDialect()
