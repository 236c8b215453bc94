"""TinyChat's words: every value in its place, read back as its tables say, and symmetric at a known loss."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.errors import CheckpointError
from nvila_ros.quantization.int4 import dequantize_uint4, quantize_uint4
from nvila_ros.quantization.tinychat import dequantize_words, requantize_words, unpack_words


def pack_words(values_NK: np.ndarray) -> np.ndarray:
    """Pack word by word, told as llm-awq does it: two shuffles of 32 inputs, then four rows by blocks of 64."""
    num_outputs, num_inputs = values_NK.shape
    shuffled = np.empty_like(values_NK)
    for first in range(0, num_inputs, 32):
        block = values_NK[:, first : first + 32]
        pairs = [8 * a + 2 * b + c for b in range(4) for a in range(4) for c in range(2)]  # 0 1 8 9 16 17 24 25 2 3 ..
        even_first = [8 * a + k for a in range(4) for k in (0, 2, 4, 6, 1, 3, 5, 7)]
        shuffled[:, first : first + 32] = block[:, pairs][:, even_first]
    words = np.zeros((num_outputs // 4, num_inputs), np.uint16)
    for row in range(num_outputs // 4):
        for block in range(num_inputs // 64):
            run = shuffled[4 * row : 4 * row + 4, 64 * block : 64 * block + 64].ravel()
            for k in range(64):
                four = run[4 * k : 4 * k + 4].astype(np.uint16)
                words[row, 64 * block + k] = four[0] | four[1] << 4 | four[2] << 8 | four[3] << 12
    return words.view(np.int16)


def packed_linear(seed: int, num_inputs: int = 256, num_outputs: int = 8) -> tuple[np.ndarray, ...]:
    """Return a weight quantized with zero points, inputs first, and the three tensors of its file."""
    weight_KN = np.random.default_rng(seed).standard_normal((num_inputs, num_outputs)).astype(np.float32)
    values_KN, scale_GN, zero_GN = quantize_uint4(weight_KN, 128)
    scale_GN = scale_GN.astype(np.float16)
    rows = -(-len(scale_GN) // 8) * 8
    scales, scaled_zeros = (np.zeros((rows, num_outputs), np.float16) for _ in range(2))
    scales[: len(scale_GN)] = scale_GN
    scaled_zeros[: len(scale_GN)] = -scale_GN * zero_GN
    wanted = dequantize_uint4(values_KN, scale_GN.astype(np.float32), zero_GN)
    return wanted, pack_words(values_KN.T), scales, scaled_zeros


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 3))
def test_values_come_back_from_packed_words(seed: int, num_fours: int, num_blocks: int) -> None:
    rng = np.random.default_rng(seed)
    values_NK = rng.integers(0, 16, (4 * num_fours, 64 * num_blocks)).astype(np.uint8)

    assert np.array_equal(unpack_words(pack_words(values_NK)), values_NK)


def test_a_word_holds_inputs_eight_apart() -> None:
    values_NK = np.zeros((4, 64), np.uint8)
    values_NK[0, [3, 11, 19, 27]] = 1, 2, 3, 4
    values_NK[2, 32 + 5] = 9

    words = pack_words(values_NK).view(np.uint16)

    assert words[0, 3] == 0x4321
    assert words[0, 2 * 16 + 8 + 5] == 9
    assert np.count_nonzero(words) == 2


def test_a_packed_weight_reads_as_its_tables_say() -> None:
    wanted_KN, *tensors = packed_linear(0)

    assert np.allclose(dequantize_words(*tensors), wanted_KN, atol=2e-3)  # scaled zeros are rounded to half


def test_symmetric_form_tells_its_loss() -> None:
    wanted_KN, *tensors = packed_linear(1)

    symmetric, loss = requantize_words(*tensors)

    error = np.square(symmetric.dequantize() - wanted_KN).sum() / np.square(wanted_KN).sum()
    assert symmetric.group_size == 128
    assert loss == pytest.approx(error, rel=0.02)
    assert 0 < loss < 0.02


def test_tables_of_another_group_size_are_refused() -> None:
    _, qweight, scales, scaled_zeros = packed_linear(2, num_inputs=1152)

    with pytest.raises(CheckpointError, match="scales must have a row for each 128 of 1152 inputs"):
        dequantize_words(qweight, scales[:4], scaled_zeros)


def test_words_of_another_kind_are_refused() -> None:
    with pytest.raises(CheckpointError, match="qweight must be int16"):
        unpack_words(np.zeros((2, 64), np.int32))
