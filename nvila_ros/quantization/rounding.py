"""Scales that every engine holds alike: whole in half precision, in which NVILA's runtimes keep them."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SCALE = 2.0**-20
"""Smallest scale of a weight, which half precision still holds: a row of zeros needs a positive one too."""


def half_up(scale: Tensor) -> Tensor:
    """Return the smallest float16 value not below each scale, at least `MIN_SCALE`, in float32.

    Up, so that what a scale was made to hold never saturates.
    """
    scale = scale.clamp(min=MIN_SCALE)
    half = scale.half()
    following = (half.view(torch.int16) + 1).view(torch.float16)  # positive floats are ordered as their bits are
    return torch.where(half.float() < scale, following, half).float()
