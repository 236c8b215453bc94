"""Relit tiles are of another light: the same for the same numbers, the same light for all tiles of a sample."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.world.relight import RELIT_SHARE, relight


def tiles(num: int) -> np.ndarray:
    return np.tile(np.linspace(0, 255, 48 * 48 * 3).astype(np.uint8).reshape(1, 48, 48, 3), (num, 1, 1, 1))


@given(seed=st.integers(0, 2**31), num=st.integers(1, 4))
def test_relit_tiles_are_a_function_of_the_numbers(seed: int, num: int) -> None:
    first, second = (relight(np.random.default_rng(seed), tiles(num)) for _ in range(2))

    assert first.shape == (num, 48, 48, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)


def test_the_share_that_is_said_is_relit_and_tiles_of_one_sample_keep_one_light() -> None:
    relit = [relight(np.random.default_rng(seed), tiles(2)) for seed in range(400)]

    changed = [not np.array_equal(each, tiles(2)) for each in relit]
    assert abs(np.mean(changed) - RELIT_SHARE) < 0.07
    means = np.array([each.mean(axis=(1, 2)) for each in relit])  # (samples, tiles, channels)
    assert np.abs(means[:, 0] - means[:, 1]).max() < 6
    assert means[:, 0].std() > 10
