"""A Triton kernel for few tokens times a four-bit weight: it reads half a byte a weight, and nothing twice.

Levels of two inputs share a byte, so the product is a sum of two: of the even inputs with the low halves, and of the
odd ones with the high halves. A program takes some outputs and walks over the groups of their inputs.

Shapes: T tokens, K inputs, N outputs, G groups of inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_TOKENS = 16  # the least rows of a product on tensor cores
BLOCK_OUTPUTS = 16


@triton.jit
def _int4_kernel(
    x_ptr: Any,
    pairs_ptr: Any,
    scale_ptr: Any,
    y_ptr: Any,
    num_tokens: Any,
    num_outputs: Any,
    num_inputs: Any,
    group_size: tl.constexpr,
    block_tokens: tl.constexpr,
    block_outputs: tl.constexpr,
):
    outputs = tl.program_id(0) * block_outputs + tl.arange(0, block_outputs)
    tokens = tl.program_id(1) * block_tokens + tl.arange(0, block_tokens)
    half = tl.arange(0, group_size // 2)
    has_token, has_output = tokens[:, None] < num_tokens, outputs[None, :] < num_outputs
    num_groups = num_inputs // group_size
    sums = tl.zeros((block_tokens, block_outputs), tl.float32)
    for group in range(num_groups):
        first = group * group_size
        x = x_ptr + tokens[:, None] * num_inputs + first + 2 * half[None, :]
        even, odd = tl.load(x, mask=has_token, other=0.0), tl.load(x + 1, mask=has_token, other=0.0)
        place = pairs_ptr + outputs[None, :] * (num_inputs // 2) + first // 2 + half[:, None]
        pairs = tl.load(place, mask=has_output, other=0)
        low, high = (pairs & 15).to(tl.int8) - 8, (pairs >> 4).to(tl.int8) - 8
        # As TF32 on tensor cores, which holds these inputs and four-bit numbers exactly.
        part = tl.dot(even.to(tl.float32), low.to(tl.float32)) + tl.dot(odd.to(tl.float32), high.to(tl.float32))
        scale = tl.load(scale_ptr + outputs * num_groups + group, mask=outputs < num_outputs, other=0.0)
        sums += part * scale.to(tl.float32)[None, :]
    y = y_ptr + tokens[:, None] * num_outputs + outputs[None, :]
    tl.store(y, sums.to(y_ptr.dtype.element_ty), mask=has_token & has_output)


def int4_product(x_TK: Tensor, pairs_NK: Tensor, scale_NG: Tensor) -> Tensor:
    """Return the product of tokens and a four-bit weight, (T, N) in the dtype of `x_TK`.

    Args:
        x_TK: float16 or bfloat16, contiguous.
        pairs_NK: (N, K / 2) uint8: levels 0 to 15 of two inputs, the first in the low half; level 8 is zero.
        scale_NG: any float type; groups have 32 inputs or a power of two above.
    """
    (num_tokens, num_inputs), num_outputs = x_TK.shape, len(pairs_NK)
    y_TN = torch.empty(num_tokens, num_outputs, dtype=x_TK.dtype, device=x_TK.device)
    grid = (triton.cdiv(num_outputs, BLOCK_OUTPUTS), triton.cdiv(num_tokens, BLOCK_TOKENS))
    group_size = num_inputs // scale_NG.shape[1]
    shapes = (num_tokens, num_outputs, num_inputs, group_size, BLOCK_TOKENS, BLOCK_OUTPUTS)
    _int4_kernel[grid](x_TK, pairs_NK, scale_NG, y_TN, *shapes)
    return y_TN
