"""Optimizer states in E4M3: groups of 128 whose range is expanded to that of the format.

States of a group often span a few binades only, of the 18 that E4M3 has; spread over more of them they are rounded
less. A group keeps its largest magnitude `top` and an exponent k, and of each value the code of

    448 sign(x) (|x| / top)^k        with        k = floor(16 log2(448^2 / 2) / log2(top / bottom)) / 16

where `bottom` is its smallest magnitude that is not 0. This is COAT's f(x) = sign(x)|x|^k with its two scales, by
sqrt(top bottom) before and by the largest f(x) after, put into one: they cancel but for `top`. So `top` itself comes
back to the bit, zeros stay zeros and `bottom` is never rounded to 0.

k is at most 255 / 16, where even neighbouring magnitudes get different codes, and at least 1/2: a group that spans more
than 2^33 would be rounded ever more coarsely for the sake of its smallest values. What lies below is rounded to 0.

A second moment is divided by, so what is not 0 must not become 0; and it changes by a thousandth a step, which rounding
to the nearest code would undo for ever. So its code is rounded up or down by chance, at odds that keep the mean.

Source: COAT (arXiv 2410.19313), section 4, and its code for 448^2 / 2 and the sixteenths.

Shapes: G groups, N values of each.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nvila_ros.training.fp8.formats import E4M3

STATE_GROUP = 128
LARGEST, SMALLEST = 448.0, 2.0**-9
"""Codes of E4M3 that are not 0."""
STEPS = 16
"""Of k in a unit."""
LOWEST_K, HIGHEST_K = 8, 255
"""In sixteenths."""
_LEAST_NORMAL, _STEPS_OF_BINADE = 2.0**-6, 8
_EXPONENT_BITS = 0x7F800000  # of float32
_LOG2_RANGE = math.log2(LARGEST**2 / 2)


class Expanded(NamedTuple):
    """Groups of values.

    Attributes:
        codes_GN: E4M3.
        top_G: float32, the largest magnitude.
        k_G: uint8, the exponent in sixteenths.
    """

    codes_GN: Tensor
    top_G: Tensor
    k_G: Tensor


def expand(x_GN: Tensor, chance: torch.Generator | None = None) -> Expanded:
    """Round groups of float32 values to codes.

    Args:
        x_GN: finite; a value that is not makes its group NaN.
        chance: for values that are divided by: round to either neighbour by chance, and to 0 only what is 0.
    """
    size_GN = x_GN.abs()
    is_zero_GN = size_GN == 0
    top_G = size_GN.amax(-1)
    bottom_G = size_GN.masked_fill(is_zero_GN, math.inf).amin(-1)
    num_binades_G = top_G.log2() - bottom_G.log2()
    k_G = (STEPS * _LOG2_RANGE / num_binades_G).floor().clamp(LOWEST_K, HIGHEST_K)
    value_GN = size_GN.div_(top_G.where(top_G != 0, 1.0)[:, None])
    value_GN.pow_((k_G / STEPS)[:, None]).mul_(LARGEST)
    if chance is not None:
        value_GN = _round_by_chance(value_GN, chance).clamp_(SMALLEST, LARGEST).masked_fill_(is_zero_GN, 0)
    return Expanded(value_GN.copysign_(x_GN).to(E4M3), top_G, k_G.to(torch.uint8))


def _round_by_chance(value: Tensor, chance: torch.Generator) -> Tensor:
    """Return codes whose mean is the value, which is not negative."""
    binade = (value.view(torch.int32) & _EXPONENT_BITS).view(torch.float32)
    step = binade.clamp_(min=_LEAST_NORMAL) / _STEPS_OF_BINADE
    share = torch.rand(value.shape, generator=chance, device=value.device)
    return (value / step).add_(share).floor_().mul_(step)


def contract(x: Expanded) -> Tensor:
    """Return the values of groups, (G, N) float32."""
    code_GN = x.codes_GN.float()
    size_GN = code_GN.abs().div_(LARGEST).pow_((STEPS / x.k_G)[:, None]).mul_(x.top_G[:, None])
    return size_GN.copysign_(code_GN)
