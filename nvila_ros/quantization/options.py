"""The choices of how a part is quantized, checked when they are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nvila_ros.errors import ConfigError

TOWER_PRECISIONS = ("fp32", "fp16", "w8a8")
DECODER_PRECISIONS = ("fp32", "fp16", "w4a16")
ACTIVATIONS = ("per_token", "per_tensor")
"""How W8A8 finds the scale of an input: from each token when it runs, or once for all of them by calibration."""
OnLayer = Callable[[str, int, int], None]
"""Called after each layer: the part's name, layers done, layers in total."""
SMALLEST_GROUP = 16  # below this the scales weigh as much as the values


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerOptions:
    """How the vision tower is quantized.

    Attributes:
        precision: one of `TOWER_PRECISIONS`; `fp16` means weights rounded to half.
        activations: one of `ACTIVATIONS`; says nothing unless the precision is `w8a8`.
        smooth: SmoothQuant's strength in (0, 1): how much of the range of activations moves into the weights; None
            leaves both as they are.
    """

    precision: str = "w8a8"
    activations: str = "per_token"
    smooth: float | None = 0.5

    def __post_init__(self) -> None:
        """Check each choice."""
        _one_of("tower precision", self.precision, TOWER_PRECISIONS)
        _one_of("activations", self.activations, ACTIVATIONS)
        if self.smooth is not None and not 0 < self.smooth < 1:
            raise ConfigError(f"smooth must lie between 0 and 1 or be none, got {self.smooth}")

    @property
    def needs_calibration(self) -> bool:
        """Whether activations are needed."""
        return self.precision == "w8a8" and (self.smooth is not None or self.activations == "per_tensor")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderOptions:
    """How the decoder is quantized.

    Attributes:
        precision: one of `DECODER_PRECISIONS`; `fp16` means weights rounded to half.
        group_size: inputs of a linear map that share a scale in `w4a16`; must divide the inputs of every map.
        is_head_int4: quantize the output head as well; a tied head becomes a tensor of its own, `llm.lm_head.weight`.
        awq: search scales that shift salient inputs' range into the weights.
        clip: search how far each group's range can be cut, for all maps but query and key.
    """

    precision: str = "w4a16"
    group_size: int = 128
    is_head_int4: bool = False
    awq: bool = True
    clip: bool = True

    def __post_init__(self) -> None:
        """Check each choice."""
        _one_of("decoder precision", self.precision, DECODER_PRECISIONS)
        if self.group_size < SMALLEST_GROUP or self.group_size % SMALLEST_GROUP:
            raise ConfigError(f"group_size must be a multiple of {SMALLEST_GROUP}, got {self.group_size}")

    @property
    def needs_calibration(self) -> bool:
        """Whether activations are needed."""
        return self.precision == "w4a16" and (self.awq or self.clip)


def ignore_progress(part: str, done: int, total: int) -> None:
    """Accept a progress report and do nothing."""


def _one_of(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {name} {value!r}; known are {list(known)}")
