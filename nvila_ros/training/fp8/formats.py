"""The two 8-bit floating-point formats, and scales that are powers of two.

E4M3 holds what the forward pass reads, E5M2 gradients, whose range is wider. A tensor has one scale, and a group of 16
neighbours one of its own where range matters more than the speed of a product. Scales are those of the tensor at hand
(current scaling): the largest magnitude is known before anything is rounded, so nothing overflows and no history has to
be kept, saved or warmed up; the price is one more read of the tensor.

A scale is the power of two above amax / largest. Dividing by it is exact in bfloat16 too, an emulated product gives the
bits of a scaled one up to the order of its sum, and a group's scale is one byte. Formats whose numbers have an exponent
lose no precision by it but one of the 18 binades that E4M3 spans.

A number that is none, or infinite, makes its tensor NaN: it is never hidden by saturation.

Shapes: M N K sides of matrices, G groups of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
GROUP = 16
"""Neighbours along the last axis that share a scale."""
_EXPONENT_BITS, _MANTISSA_BITS = 0x7F800000, 0x007FFFFF  # of float32
_INFINITY = float("inf")


class Quantized(NamedTuple):
    """Values in FP8 and what to multiply them with.

    Attributes:
        codes: FP8, of the values' shape.
        scale: () float32; or (..., G) uint8, the exponent of each group's scale plus 127.
    """

    codes: Tensor
    scale: Tensor


def quantize(x: Tensor, dtype: torch.dtype) -> Quantized:
    """Round a tensor to FP8 with one scale."""
    scale = _power_above(torch.linalg.vector_norm(x, _INFINITY), dtype)
    return Quantized((_exact(x) * scale.reciprocal()).to(dtype), scale)


def quantize_groups(x: Tensor, dtype: torch.dtype) -> Quantized:
    """Round a tensor to FP8 with a scale for each `GROUP` neighbours; its last axis is a multiple of them."""
    grouped = x.unflatten(-1, (-1, GROUP))
    scale = _power_above(torch.linalg.vector_norm(grouped, _INFINITY, dim=-1), dtype)
    grouped = _exact(grouped)
    codes = (grouped * scale.reciprocal().to(grouped.dtype)[..., None]).to(dtype)
    return Quantized(codes.flatten(-2), (scale.view(torch.int32) >> 23).to(torch.uint8))


def dequantize_groups(x: Quantized) -> Tensor:
    """Return the values of a tensor whose groups have scales, float32."""
    scale = (x.scale.to(torch.int32) << 23).view(torch.float32)
    return (x.codes.float().unflatten(-1, (-1, GROUP)) * scale[..., None]).flatten(-2)


def has_fp8_products(device: torch.device) -> bool:
    """Whether the device multiplies FP8 by itself: NVIDIA's from Ada (8.9) on."""
    if device.type != "cuda" or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


def multiply(a_MK: Quantized, b_KN: Quantized, dtype: torch.dtype, *, is_fast: bool) -> Tensor:
    """Return the product of two FP8 matrices, (M, N), summed in float32.

    Args:
        a_MK: row-major.
        b_KN: column-major; K and N are multiples of 16. At most one of the two may be E5M2.
        dtype: of the product.
        is_fast: sum in the tensor cores' own registers, about 14 bits, which is enough for a forward pass only.
    """
    if has_fp8_products(a_MK.codes.device):
        return scaled_product(a_MK, b_KN, dtype, is_fast=is_fast)
    return emulated_product(a_MK, b_KN, dtype)


def scaled_product(a_MK: Quantized, b_KN: Quantized, dtype: torch.dtype, *, is_fast: bool) -> Tensor:
    """`multiply` by the hardware."""
    return torch._scaled_mm(
        a_MK.codes, b_KN.codes, scale_a=a_MK.scale, scale_b=b_KN.scale, out_dtype=dtype, use_fast_accum=is_fast
    )


def emulated_product(a_MK: Quantized, b_KN: Quantized, dtype: torch.dtype) -> Tensor:
    """`multiply` by wider numbers, which hold those of FP8 exactly.

    The scales come last: as powers of two they commute with the rounding of the product.
    """
    # float16 holds the factors, but not all that their sums can be.
    wide = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    product_MN = a_MK.codes.to(wide) @ b_KN.codes.to(wide)
    return (product_MN * a_MK.scale * b_KN.scale).to(dtype)


def transpose(x_MN: Quantized) -> Quantized:
    """Return the transposed matrix in row-major order, which is a copy: tensor cores take one layout only."""
    return Quantized(x_MN.codes.t().contiguous(), x_MN.scale)


def _power_above(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the least power of two that brings amax into the format, float32 and never 0."""
    ratio = amax.float() / torch.finfo(dtype).max
    power = ((ratio.view(torch.int32) + _MANTISSA_BITS) & _EXPONENT_BITS).view(torch.float32)
    nothing = ratio - ratio  # 0, or NaN where amax is no finite number
    return power.clamp(min=torch.finfo(torch.float32).tiny) + nothing


def _exact(x: Tensor) -> Tensor:
    """Return x in a type whose exponents hold every scale."""
    return x.float() if x.dtype == torch.float16 else x
