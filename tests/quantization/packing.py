"""Packs weights as llm-awq packs them for TinyChat: the way there, of which the project has only the way back."""

from __future__ import annotations

import numpy as np

GROUP = 128
PAIRS = [8 * a + 2 * b + c for b in range(4) for a in range(4) for c in range(2)]  # 0 1 8 9 16 17 24 25 2 3 ..
EVEN_FIRST = [8 * a + k for a in range(4) for k in (0, 2, 4, 6, 1, 3, 5, 7)]


def pack_words(values_NK: np.ndarray) -> np.ndarray:
    """Pack word by word, told as llm-awq does it: two shuffles of 32 inputs, then four rows by blocks of 64."""
    num_outputs, num_inputs = values_NK.shape
    shuffled = np.empty_like(values_NK)
    for first in range(0, num_inputs, 32):
        block = values_NK[:, first : first + 32]
        shuffled[:, first : first + 32] = block[:, PAIRS][:, EVEN_FIRST]
    words = np.zeros((num_outputs // 4, num_inputs), np.uint16)
    for row in range(num_outputs // 4):
        for block in range(num_inputs // 64):
            run = shuffled[4 * row : 4 * row + 4, 64 * block : 64 * block + 64].ravel()
            four = run.reshape(64, 4).astype(np.uint16).T
            words[row, 64 * block : 64 * block + 64] = four[0] | four[1] << 4 | four[2] << 8 | four[3] << 12
    return words.view(np.int16)


def pack_linear(weight_KN: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Round a weight to [0, 15] with zero points, scale = (max - min) / 15, and pack it.

    Returns:
        what the packed tensors stand for, (K, N) float32, and the tensors by the ends of their names.
    """
    groups = weight_KN.reshape(-1, GROUP, weight_KN.shape[1])
    low_GN, high_GN = np.minimum(groups.min(1), 0), np.maximum(groups.max(1), 0)
    scale_GN = ((high_GN - low_GN) / 15).astype(np.float16)
    zero_GN = np.rint(-low_GN / scale_GN)
    values = np.clip(np.rint(groups / scale_GN[:, None].astype(np.float32)) + zero_GN[:, None], 0, 15)
    rows = -(-len(scale_GN) // 8) * 8
    scales, scaled_zeros = (np.zeros((rows, weight_KN.shape[1]), np.float16) for _ in range(2))
    scales[: len(scale_GN)] = scale_GN
    scaled_zeros[: len(scale_GN)] = -scale_GN * zero_GN
    wanted = (values - zero_GN[:, None]) * scale_GN[:, None].astype(np.float32)
    qweight = pack_words(values.reshape(weight_KN.shape).T.astype(np.uint8))
    tensors = {"qweight": qweight, "scales": scales, "scaled_zeros": scaled_zeros}
    return wanted.reshape(weight_KN.shape).astype(np.float32), tensors
