"""Four-bit weights: in range, as near as their scales allow, and packed as ONNX packs them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import ConfigError
from nvila_ros.models.quantized import INT4_RANGE
from nvila_ros.quantization.int4 import quantize_int4

SLACK = 1 + 1e-5  # float32 rounding of the dequantized product


def random_weight(seed: int, num_inputs: int, num_outputs: int, spread: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight_KN = rng.standard_normal((num_inputs, num_outputs)) * 10 ** rng.uniform(-spread, spread, num_outputs)
    return weight_KN.astype(np.float32)


def each_scale(scale_GN: np.ndarray, weight_KN: np.ndarray) -> np.ndarray:
    return np.repeat(scale_GN, len(weight_KN) // len(scale_GN), axis=0)


@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from([1, 4, 16]), st.integers(1, 7), st.floats(0, 3))
def test_no_weight_is_off_by_more_than_half_a_scale(
    seed: int, num_groups: int, group: int, num_outputs: int, spread: float
) -> None:
    weight_KN = random_weight(seed, num_groups * group, num_outputs, spread)

    quantized = quantize_int4(weight_KN, group)

    assert quantized.values_KN.dtype == np.int8
    assert quantized.scale_GN.shape == (num_groups, num_outputs)
    assert (quantized.scale_GN > 0).all()
    assert quantized.group_size == group
    assert INT4_RANGE[0] <= quantized.values_KN.min() <= quantized.values_KN.max() <= INT4_RANGE[1]
    error = np.abs(quantized.dequantize() - weight_KN)
    assert (error <= each_scale(quantized.scale_GN, weight_KN) / 2 * SLACK).all()


@given(st.integers(0, 2**32), st.floats(0.5, 1.0))
def test_a_clipped_weight_is_off_only_where_it_exceeds_the_range(seed: int, clip: float) -> None:
    weight_KN = random_weight(seed, 32, 3)

    quantized = quantize_int4(weight_KN, 16, np.full((2, 3), clip, np.float32))

    scale_KN = each_scale(quantized.scale_GN, weight_KN)
    is_inside = (weight_KN <= 7.5 * scale_KN) & (weight_KN >= -8.5 * scale_KN)
    error = np.abs(quantized.dequantize() - weight_KN)
    assert (error <= scale_KN / 2 * SLACK)[is_inside].all()
    assert set(quantized.values_KN[~is_inside].tolist()) <= set(INT4_RANGE)


@given(st.integers(0, 2**32))
def test_scales_are_whole_in_half_precision(seed: int) -> None:
    scale_GN = quantize_int4(random_weight(seed, 16, 8, spread=6.0), 16).scale_GN

    assert np.array_equal(scale_GN.astype(np.float16).astype(np.float32), scale_GN)


def test_all_sixteen_levels_serve() -> None:
    weight_KN = np.linspace(-8, 7, 16, dtype=np.float32)[:, None]

    quantized = quantize_int4(weight_KN, 16)

    assert quantized.values_KN.ravel().tolist() == list(range(-8, 8))
    assert np.array_equal(quantized.dequantize(), weight_KN)


def test_zeros_stay_zeros() -> None:
    assert not quantize_int4(np.zeros((16, 2), np.float32), 16).dequantize().any()


def test_a_group_that_does_not_fill_the_inputs_is_refused_with_the_one_that_would() -> None:
    with pytest.raises(ConfigError, match=r"must divide the inputs.* 128 and 320 inputs; the largest .* is 80"):
        quantize_int4(np.zeros((320, 2), np.float32))
