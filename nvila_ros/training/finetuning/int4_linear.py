"""A frozen linear map in four bits, read back to its inputs' precision whenever it is needed: QLoRA's base.

The values are those of `Int4Weight`, so that what is tuned over is what the four-bit engines compute.

Shapes: K inputs, N outputs, G groups of inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nvila_ros.quantization.int4 import group_scales, round_groups


class Int4Linear(nn.Module):
    """y = x W + b with W of four bits, two to a byte; gradients pass to x alone.

    Args:
        linear: what it stands for; its bias is kept as it is.
        group_size: must divide the inputs.

    Raises:
        ConfigError: it does not.
    """

    def __init__(self, linear: nn.Linear, group_size: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight_KN = linear.weight.detach().float().T.contiguous()
        scale_GN = group_scales(weight_KN, group_size)
        values_KN = round_groups(weight_KN, scale_GN).to(torch.int8)
        # Parameters, though none learns, so that ranks which share a model share these too. peft looks for four-bit
        # weights under this name; (K, N / 2) uint8.
        self.qweight = nn.Parameter(_pack(values_KN), requires_grad=False)
        # Scales are whole in half precision, so nothing is lost.
        self.scale_GN = nn.Parameter(scale_GN.half(), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., N), in autocast's precision where that is on."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        y = _Int4Matmul.apply(x.to(dtype), self)
        return y if self.bias is None else y + self.bias.to(dtype)

    def extra_repr(self) -> str:
        """Return what printing a model shows of it."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


def dequantize(packed: Tensor, scale_GN: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return W, (K, N), of two values to a byte, (K, N / 2) uint8."""
    # Shifted up and back down as signed bytes, a nibble keeps its sign.
    low, high = (packed << 4).view(torch.int8) >> 4, packed.view(torch.int8) >> 4
    values_KN = torch.stack([low, high], dim=-1).flatten(1).float()
    # Rounded once: scales have digits that bfloat16 has not.
    return (values_KN.unflatten(0, (len(scale_GN), -1)) * scale_GN.float()[:, None]).flatten(0, 1).to(dtype)


def _pack(values_KN: Tensor) -> Tensor:
    """Return values two to a byte, the first in the low half, as `models.quantized.pack_nibbles`."""
    nibbles = values_KN.view(torch.uint8) & 0xF
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


class _Int4Matmul(torch.autograd.Function):
    """x W; autograd's own would keep W in full for the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: Int4Linear) -> Tensor:
        ctx.linear = linear
        with torch.autocast(x.device.type, enabled=False):
            return x @ dequantize(linear.qweight, linear.scale_GN, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        linear = ctx.linear
        return grad @ dequantize(linear.qweight, linear.scale_GN, grad.dtype).T, None
