"""Four-bit weights: symmetric values with a scale for each output and group of inputs.

In: a linear map's weight W (K, N), inputs first. Out: `Int4Weight`.

A group's scale is the smallest under which nothing saturates, max(max W / 7, -min W / 8), rounded up to half precision:
all sixteen levels serve, and no weight is off by more than half a scale. A clip ratio below 1 makes the scale that much
smaller, so the largest weights saturate and all others come closer.

Shapes: K inputs, N outputs, G groups of K / G inputs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nvila_ros.errors import ConfigError
from nvila_ros.models.quantized import INT4_RANGE, Int4Weight
from nvila_ros.quantization.rounding import half_up

LOWEST, HIGHEST = INT4_RANGE


def quantize_int4(weight_KN: np.ndarray, group_size: int = 128, clip_GN: np.ndarray | None = None) -> Int4Weight:
    """Round a weight to symmetric four bits.

    Args:
        weight_KN: float32, finite.
        group_size: must divide K.
        clip_GN: ratios in (0, 1] by which each group's range is cut; None keeps all of it.

    Raises:
        ConfigError: the group size does not divide K.
    """
    weight = torch.from_numpy(np.ascontiguousarray(weight_KN, np.float32))
    scale_GN = group_scales(weight, group_size)
    if clip_GN is not None:
        scale_GN = half_up(scale_GN * torch.from_numpy(np.asarray(clip_GN, np.float32)))
    values_KN = round_groups(weight, scale_GN)
    return Int4Weight(values_KN.to(torch.int8).numpy(), scale_GN.numpy())


def group_scales(weight_KN: Tensor, group_size: int) -> Tensor:
    """Return the smallest scales under which no weight saturates, (G, N).

    Raises:
        ConfigError: the group size does not divide K.
    """
    check_groups(len(weight_KN), group_size)
    groups = weight_KN.unflatten(0, (-1, group_size))
    low_GN, high_GN = groups.amin(1), groups.amax(1)
    return half_up(torch.maximum(high_GN / HIGHEST, low_GN / LOWEST))


def round_groups(weight_KN: Tensor, scale_GN: Tensor) -> Tensor:
    """Return the values nearest to a weight under given scales, (K, N) whole numbers in float32; ties go to even."""
    groups = weight_KN.unflatten(0, (len(scale_GN), -1))
    return (groups / scale_GN[:, None]).round().clamp(LOWEST, HIGHEST).flatten(0, 1)


def fake_int4(weight_KN: Tensor, scale_GN: Tensor) -> Tensor:
    """Return what a weight becomes when it is rounded to four bits and read back, (K, N)."""
    values = round_groups(weight_KN, scale_GN).unflatten(0, (len(scale_GN), -1))
    return (values * scale_GN[:, None]).flatten(0, 1)


def check_groups(num_inputs: int, group_size: int) -> None:
    """Check that groups fill a linear map's inputs: neither padding nor a shorter last group is offered.

    Raises:
        ConfigError: they do not; the message names the largest size that would.
    """
    if group_size < 1 or num_inputs % group_size:
        fits = max(size for size in range(1, max(min(group_size, num_inputs), 1) + 1) if num_inputs % size == 0)
        raise ConfigError(
            f"the group size must divide the inputs of every linear map, got {group_size} and {num_inputs} inputs; "
            f"the largest that divides them is {fits}"
        )
