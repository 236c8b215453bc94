"""Sizes that an engine is built for."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from nvila_ros.config import check_fields, setting
from nvila_ros.errors import ConfigError
from nvila_ros.models.spec import ModelSpec
from nvila_ros.models.variants import QUESTION_TOKENS, image_cost, tile_range

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """The largest inputs of an engine; buffers are allocated for them."""

    max_prompt_tokens: int = setting(2048, "longest prompt", "tokens", low=16, high=131072)
    max_answer_tokens: int = setting(256, "longest answer", "tokens", low=1, high=8192)
    batch_tiles: int = setting(1, "tiles that the tower takes at once", "tiles", low=1, high=64)

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self)


def check_prompt_room(spec: ModelSpec, max_prompt_tokens: int) -> None:
    """Check that a question about an image fits into prompts of this length.

    Raises:
        ConfigError: not even the smallest image fits, or the prompts are longer than the model's positions.
    """
    if max_prompt_tokens > spec.decoder.max_positions:
        raise ConfigError(
            f"limits.max_prompt_tokens must be at most {spec.decoder.max_positions}, the positions of {spec.name}, got "
            f"{max_prompt_tokens}; lower it in the recipe"
        )
    least, most = (image_cost(spec, tiles).num_positions + QUESTION_TOKENS for tiles in tile_range(spec))
    if max_prompt_tokens < least:
        raise ConfigError(
            f"limits.max_prompt_tokens must be at least {least} for a question about one image of {spec.name}, and "
            f"{most} about one of any aspect, got {max_prompt_tokens}; raise it in the recipe"
        )
    if max_prompt_tokens < most:
        _log.warning(
            "an image of some aspects takes %d prompt tokens, and the recipe lets %d: lower the node's max_tiles, or "
            "raise limits.max_prompt_tokens",
            most,
            max_prompt_tokens,
        )
