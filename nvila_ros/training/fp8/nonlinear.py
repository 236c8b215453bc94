"""RMSNorm and the gate of the MLP, whose backward passes keep their inputs in FP8 with a scale for each 16 neighbours.

The forward passes are untouched: each gives the bits that it gave before. The residual stream, which a norm reads, has
outliers that one scale for the whole tensor would pay for; groups cost a sixteenth more and have no product to be fast
for. Of the gate not even the product of its halves is kept, only what it is made of.

Source: COAT (arXiv 2410.19313), section 5.

Shapes: D width, F width of the MLP.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvila_ros.models.decoder import GatedMlp
from nvila_ros.training.fp8.formats import E4M3, Quantized, dequantize_groups, quantize_groups


class Fp8RmsNorm(nn.RMSNorm):
    """`nn.RMSNorm` over a last axis that is a multiple of `formats.GROUP`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what `nn.RMSNorm` returns."""
        return _RmsNorm.apply(x, self.weight, self.eps)


class Fp8Mlp(GatedMlp):
    """The decoder's gated MLP, whose width is a multiple of `formats.GROUP`."""

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return what `GatedMlp` returns with the same maps."""
        return self.down_proj(_Gate.apply(self.gate_proj(x_BLD), self.up_proj(x_BLD)))


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_D: Tensor, eps: float | None) -> Tensor:
        ctx.dtype, ctx.eps = x.dtype, torch.finfo(x.dtype).eps if eps is None else eps
        ctx.save_for_backward(*quantize_groups(x, E4M3), weight_D)
        return functional.rms_norm(x, weight_D.shape, weight_D, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes, scale, weight_D = ctx.saved_tensors
        x = dequantize_groups(Quantized(codes, scale))
        inverse = (x.square().mean(-1, keepdim=True) + ctx.eps).rsqrt()
        normed, grad = x * inverse, grad.float()
        grad_weight_D = (grad * normed).flatten(0, -2).sum(0).to(weight_D.dtype)
        grad = grad * weight_D.float()
        grad_x = inverse * (grad - normed * (grad * normed).mean(-1, keepdim=True))
        return grad_x.to(ctx.dtype), grad_weight_D, None


class _Gate(torch.autograd.Function):
    """silu(gate) * up."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.dtypes = gate.dtype, up.dtype
        ctx.save_for_backward(*quantize_groups(gate, E4M3), *quantize_groups(up, E4M3))
        return functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        codes = ctx.saved_tensors
        gate, up = dequantize_groups(Quantized(*codes[:2])), dequantize_groups(Quantized(*codes[2:]))
        grad, open_share = grad.float(), gate.sigmoid()
        grad_gate = grad * up * open_share * (1 + gate * (1 - open_share))
        return grad_gate.to(ctx.dtypes[0]), (grad * gate * open_share).to(ctx.dtypes[1])
