"""Scales that are exact in half precision, in which NVILA's runtimes store them, so that all engines have the same."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SCALE = 2.0**-20
"""Smallest scale of a weight, exact in half precision: a row of zeros needs a positive scale too."""


def half_up(scale: Tensor) -> Tensor:
    """Return the smallest float16 value not below each scale, at least `MIN_SCALE`, in float32.

    Rounded up, so that the largest value never saturates.
    """
    scale = scale.clamp(min=MIN_SCALE)
    half = scale.half()
    following = (half.view(torch.int16) + 1).view(torch.float16)  # positive floats are ordered as their bits are
    return torch.where(half.float() < scale, following, half).float()
