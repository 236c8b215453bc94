"""The sizes that an engine is built for."""

from __future__ import annotations

from dataclasses import dataclass

from nvila_ros.config import check_fields, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What the engine must take; buffers are allocated for it."""

    max_prompt_tokens: int = setting(2048, "longest prompt", "tokens", low=16, high=131072)
    max_answer_tokens: int = setting(256, "longest answer", "tokens", low=1, high=8192)
    batch_tiles: int = setting(1, "tiles that the tower takes at once", "tiles", low=1, high=64)

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self)
