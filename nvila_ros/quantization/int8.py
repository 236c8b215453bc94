"""Eight bits for the vision tower: weights, activations, and SmoothQuant's shift of range from one to the other.

A linear map y = x W + b becomes round(x / s_x) round(W / s_N) s_x s_N + b: products of int8 summed exactly, one scale
for each output, and for the input one for each token when it runs or one for all by calibration.

Sources: SmoothQuant (arXiv 2211.10438); NVILA's TinyChat, which quantizes the inputs of q/k/v, out, fc1 and fc2 and
smooths the two that follow a norm.

Shapes: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from nvila_ros.models.activations import MIN_MAGNITUDE, round_activations
from nvila_ros.models.quantized import INT8_RANGE, Int8Weight
from nvila_ros.quantization.rounding import half_up

MIN_SMOOTH = 1e-5  # as NVILA clamps
CUTS = tuple(1 - i / 40 for i in range(32))
"""Shares of the largest activation that `choose_input_scale` tries as the range, 1 down to 0.225."""


def quantize_int8(weight_KN: np.ndarray, input_scale: float | None = None) -> Int8Weight:
    """Round a weight to symmetric eight bits for each output; ties go to even.

    Args:
        weight_KN: float32, finite.
        input_scale: see `Int8Weight`.
    """
    weight = torch.from_numpy(np.ascontiguousarray(weight_KN, np.float32))
    scale_N = half_up(weight.abs().amax(0) / INT8_RANGE[1])
    values_KN = (weight / scale_N).round().to(torch.int8)
    return Int8Weight(values_KN.numpy(), scale_N.numpy(), input_scale)


def smooth_scales(amax_K: Tensor, weights_NK: Sequence[Tensor], strength: float) -> Tensor:
    """Return SmoothQuant's divisor of each input, (K,).

    Args:
        amax_K: the largest magnitude of each input over the calibration set.
        weights_NK: weights of all linear maps that read this input.
        strength: 0 < a < 1: divisor = amax^a / max|W|^(1 - a).
    """
    largest_K = torch.stack([weight.abs().amax(0) for weight in weights_NK]).amax(0)
    # Clamped like the weights: an input that is always zero, or whose weights are, has no range.
    scale_K = amax_K.clamp(min=MIN_SMOOTH) ** strength / largest_K.clamp(min=MIN_SMOOTH) ** (1 - strength)
    return scale_K.clamp(min=MIN_SMOOTH)


def choose_input_scale(x_TK: Tensor, weights_NK: Sequence[Tensor], amax: float) -> float:
    """Return the scale of an input with the smallest error of the maps that read it; all tensors on one device.

    Args:
        x_TK: sampled tokens of the input.
        weights_NK: float weights of all maps that read it; each is tried in its eight-bit form.
        amax: the largest magnitude over all tokens, sampled or not.
    """
    weight_KN = torch.cat([weight.T for weight in weights_NK], 1)
    rounded_KN = torch.from_numpy(quantize_int8(weight_KN.cpu().numpy()).dequantize()).to(x_TK.device)
    want_TN = x_TK @ weight_KN
    best, best_error = 0.0, float("inf")
    for cut in CUTS:
        scale = max(amax * cut, MIN_MAGNITUDE) / INT8_RANGE[1]
        error = float((round_activations(x_TK, scale) * scale @ rounded_KN - want_TN).square().sum())
        if error < best_error:
            best, best_error = scale, error
    return best
