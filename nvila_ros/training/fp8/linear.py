"""A linear map whose three products are in FP8 and whose backward pass keeps its input in FP8.

Forward: E4M3 x E4M3. Backward: gradients of the output in E5M2 times the weight, and times the input, in E4M3. The
weight stays a parameter in its own type and is rounded anew where it is needed, which costs no memory.

Shapes: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvila_ros.training.fp8.formats import E4M3, E5M2, Quantized, multiply, quantize, transpose

MULTIPLE = 16
"""Of both sides of a weight, as tensor cores take them."""


class SharedInput:
    """The one FP8 copy of what several maps read, such as queries, keys and values; kept until the last has read it.

    Without it, each map would keep a copy of its own for the backward pass, which for three is more than one in
    bfloat16. The input must not change between the first and the last map.
    """

    def __init__(self, num_maps: int) -> None:
        self.num_maps = num_maps
        self.num_left = 0
        self.seen: Tensor | None = None
        self.copy: Quantized | None = None

    def quantize(self, x: Tensor, x_TK: Tensor) -> Quantized:
        """Return the copy of x, whose rows are x_TK."""
        if self.copy is None or self.seen is not x:
            self.seen, self.num_left = x, self.num_maps
            self.copy = quantize(x_TK, E4M3)
        copy = self.copy
        self.num_left -= 1
        if self.num_left == 0:
            self.seen = self.copy = None
        return copy


class Fp8Linear(nn.Linear):
    """`nn.Linear` in FP8; both sides are multiples of `MULTIPLE`.

    Made of an `nn.Linear` by `convert_linears`: parameters, their names and hooks stay what they were.
    """

    shared_input: SharedInput | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., N) in the type of x, or in autocast's."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        rows_TK = x.flatten(0, -2) if x.dim() > 1 else x[None]
        num_rows = len(rows_TK)
        # The product that gives the weight's gradient sums over rows.
        rows_TK = functional.pad(rows_TK, (0, 0, 0, -num_rows % MULTIPLE)) if num_rows % MULTIPLE else rows_TK
        with torch.no_grad():
            if self.shared_input is None or torch.compiler.is_compiling():  # the compiler finds equal copies itself
                copy = quantize(rows_TK, E4M3)
            else:
                copy = self.shared_input.quantize(x, rows_TK)
        y_TN = _Fp8Matmul.apply(rows_TK, self.weight, copy.codes, copy.scale, dtype)[:num_rows]
        if self.bias is not None:
            y_TN = y_TN + self.bias.to(dtype)
        return y_TN.view(*x.shape[:-1], self.out_features)


class _Fp8Matmul(torch.autograd.Function):
    """The product and its two gradients."""

    @staticmethod
    def forward(
        ctx: Any, x_TK: Tensor, weight_NK: Tensor, codes_TK: Tensor, scale: Tensor, dtype: torch.dtype
    ) -> Tensor:
        weight8_NK = quantize(weight_NK, E4M3)
        ctx.dtype, ctx.x_dtype, ctx.weight_dtype = dtype, x_TK.dtype, weight_NK.dtype
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(weight_NK if needs_x else None, *((codes_TK, scale) if needs_weight else (None, None)))
        weight8_KN = Quantized(weight8_NK.codes.t(), weight8_NK.scale)
        return multiply(Quantized(codes_TK, scale), weight8_KN, dtype, is_fast=True)

    @staticmethod
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:
        weight_NK, codes_TK, scale = ctx.saved_tensors
        grad8_TN = quantize(grad_TN, E5M2)
        grad8_TN = Quantized(grad8_TN.codes.contiguous(), grad8_TN.scale)
        grad_x_TK = grad_weight_NK = None
        if weight_NK is not None:
            weight8_NK = _column_major(quantize(weight_NK, E4M3))
            grad_x_TK = multiply(grad8_TN, weight8_NK, ctx.dtype, is_fast=False).to(ctx.x_dtype)
        if codes_TK is not None:
            x8_TK = _column_major(Quantized(codes_TK, scale))
            grad_weight_NK = multiply(transpose(grad8_TN), x8_TK, ctx.dtype, is_fast=False).to(ctx.weight_dtype)
        return grad_x_TK, grad_weight_NK, None, None, None


def _column_major(x: Quantized) -> Quantized:
    return Quantized(transpose(x).codes.t(), x.scale)
