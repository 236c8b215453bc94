"""Read AWQ weights as NVILA's TinyChat packs them, and turn them into this project's symmetric form.

In: one linear map's `qweight`, `scales` and `scaled_zeros`. Out: its float weight, or an `Int4Weight` and what the
change of scheme cost. The published files are pickles (`*-v2.pt`), which are never opened here: save them as
safetensors first, from a machine where running their code is acceptable.

How a word is laid out, from what llm-awq's `pack_intweight` (interleave 4, stride 64) writes: outputs come in fours and
inputs in blocks of 64. A block holds 4 outputs x 2 halves x 8 words; word w of a half of 32 inputs holds the inputs
w, w + 8, w + 16 and w + 24 of that half, the first in the lowest four bits. A value q stands for
q * scale + scaled_zero, where scaled_zero = -zero * scale, for groups of 128 inputs; the rows of both tables are padded
with zeros to a multiple of 8.

Shapes: K inputs, N outputs, G groups of inputs.
"""

from __future__ import annotations

import numpy as np

from nvila_ros.errors import CheckpointError
from nvila_ros.models.quantized import Int4Weight
from nvila_ros.quantization.int4 import quantize_int4

GROUP_SIZE = 128
_OUTPUTS, _BLOCK = 4, 64  # outputs interleaved in a row of words, inputs of a block
_ORDER = (_OUTPUTS, 2, 4, 8)  # output, half, input within the word, word


def unpack_words(qweight: np.ndarray) -> np.ndarray:
    """Return the values in 0..15 of packed words, (N, K) uint8.

    Args:
        qweight: int16 (N / 4, K).

    Raises:
        CheckpointError: it is not such an array.
    """
    if qweight.dtype != np.int16 or qweight.ndim != 2 or qweight.shape[1] % _BLOCK:
        raise CheckpointError(
            f"qweight must be int16 of N / 4 rows and a multiple of {_BLOCK} columns, got {qweight.dtype} "
            f"{qweight.shape}; only TinyChat's version 2 files are read"
        )
    rows, num_inputs = qweight.shape
    outputs, halves, in_word, words = _ORDER
    packed = qweight.view(np.uint16).reshape(rows, -1, outputs, halves, words, 1)
    values = packed >> (4 * np.arange(in_word, dtype=np.uint16)) & 0xF  # (N / 4, blocks, output, half, word, in word)
    return values.transpose(0, 2, 1, 3, 5, 4).reshape(rows * outputs, num_inputs).astype(np.uint8)


def dequantize_words(qweight: np.ndarray, scales: np.ndarray, scaled_zeros: np.ndarray) -> np.ndarray:
    """Return a linear map's weight, inputs first, (K, N) float32.

    Args:
        qweight: int16 (N / 4, K).
        scales: float16, at least (K / 128, N).
        scaled_zeros: as scales.

    Raises:
        CheckpointError: the tables do not suit the words.
    """
    values_KN = unpack_words(qweight).T.astype(np.float32)
    num_inputs, num_outputs = values_KN.shape
    num_groups = num_inputs // GROUP_SIZE
    for name, table in (("scales", scales), ("scaled_zeros", scaled_zeros)):
        if num_inputs % GROUP_SIZE or table.ndim != 2 or len(table) < num_groups or table.shape[1] != num_outputs:
            raise CheckpointError(
                f"{name} must have a row for each {GROUP_SIZE} of {num_inputs} inputs and {num_outputs} columns, "
                f"got {table.shape}; use tables of the same linear map and group size"
            )
    scale_KN, zero_KN = (
        np.repeat(table[:num_groups].astype(np.float32), GROUP_SIZE, axis=0) for table in (scales, scaled_zeros)
    )
    return values_KN * scale_KN + zero_KN


def requantize_words(qweight: np.ndarray, scales: np.ndarray, scaled_zeros: np.ndarray) -> tuple[Int4Weight, float]:
    """Return the weight in symmetric form, and the relative squared error that this adds.

    Raises:
        CheckpointError: see `dequantize_words`.
    """
    weight_KN = dequantize_words(qweight, scales, scaled_zeros)
    symmetric = quantize_int4(weight_KN, GROUP_SIZE)
    lost, whole = np.square(symmetric.dequantize() - weight_KN, dtype=np.float64).sum(), np.square(weight_KN).sum()
    return symmetric, float(lost / max(whole, np.finfo(np.float32).tiny))
