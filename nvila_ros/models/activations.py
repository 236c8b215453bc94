"""Eight-bit inputs of linear maps: their scales, and how they are rounded.

Shapes: T tokens, K inputs.
"""

from __future__ import annotations

from torch import Tensor

from nvila_ros.models.quantized import INT8_RANGE

MIN_MAGNITUDE = 1e-12  # of a token of zeros; any scale keeps it zero


def token_scales(x_TK: Tensor) -> Tensor:
    """Return each token's own scale, (..., T, 1): its largest magnitude is 127."""
    return x_TK.abs().amax(-1, keepdim=True).clamp(min=MIN_MAGNITUDE) / INT8_RANGE[1]


def round_activations(x_TK: Tensor, scale: Tensor | float) -> Tensor:
    """Return activations as whole numbers in [-128, 127], in float32: ties go to even, and what is beyond saturates.

    The range is that of ONNX's QuantizeLinear; only activations beyond a calibrated range ever reach -128.
    """
    return (x_TK / scale).round().clamp(-128, 127)
