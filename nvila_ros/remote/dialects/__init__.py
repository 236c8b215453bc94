"""What servers take beyond OpenAI's API: one file for each, found by its name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from nvila_ros.remote.dialects.openai import OpenAiDialect

BY_OWNER = {"vllm": "vllm", "sglang": "sglang", "nvila_ros": "nvila"}
"""The dialect of a server whose models say that they are owned by it; any other speaks OpenAI's alone."""


def find_dialect(name: str) -> OpenAiDialect:
    """Return the dialect of a name, that of the module here."""
    module: Any = importlib.import_module(f"nvila_ros.remote.dialects.{name}")
    dialect: OpenAiDialect = module.DIALECT
    return dialect


def dialect_of(model: Mapping[str, Any]) -> str:
    """Return the name of the dialect of a server, from a model that it lists."""
    return BY_OWNER.get(str(model.get("owned_by")), "openai")
