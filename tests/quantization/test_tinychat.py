"""TinyChat's words: every value in its place, read back as its tables say, and symmetric at a known loss."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.errors import CheckpointError
from nvila_ros.quantization.tinychat import dequantize_words, requantize_words, unpack_words
from tests.quantization.packing import pack_linear, pack_words


def packed_linear(seed: int, num_inputs: int = 256, num_outputs: int = 8) -> tuple[np.ndarray, ...]:
    """Return a random weight with zero points, inputs first, and the three tensors of its file."""
    weight_KN = np.random.default_rng(seed).standard_normal((num_inputs, num_outputs)).astype(np.float32)
    wanted_KN, tensors = pack_linear(weight_KN)
    return wanted_KN, *tensors.values()


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


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.floats(-3, 3))
def test_symmetric_form_is_off_by_half_of_its_scale_at_most(seed: int, shift: float) -> None:
    weight_KN = np.random.default_rng(seed).standard_normal((256, 4)).astype(np.float32) + np.float32(shift)
    _, tensors = pack_linear(weight_KN)

    symmetric, _ = requantize_words(*tensors.values())

    scale_KN = np.repeat(symmetric.scale_GN, 128, axis=0)
    error = np.abs(symmetric.dequantize() - dequantize_words(*tensors.values()))
    assert (error <= scale_KN / 2 * (1 + 1e-5)).all()


def test_tables_that_hold_no_numbers_are_refused() -> None:
    _, qweight, scales, scaled_zeros = packed_linear(3)
    scales[0, 0] = np.inf

    with pytest.raises(CheckpointError, match="must be finite"):
        requantize_words(qweight, scales, scaled_zeros)


def test_tables_of_another_group_size_are_refused() -> None:
    _, qweight, scales, scaled_zeros = packed_linear(2, num_inputs=1152)

    with pytest.raises(CheckpointError, match="scales must have a row for each 128 of 1152 inputs"):
        dequantize_words(qweight, scales[:4], scaled_zeros)


def test_words_of_another_kind_are_refused() -> None:
    with pytest.raises(CheckpointError, match="qweight must be int16"):
        unpack_words(np.zeros((2, 64), np.int32))
