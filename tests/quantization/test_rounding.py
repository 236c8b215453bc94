"""Scales in half precision: never below what they were, and never further up than need be."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.quantization.rounding import MIN_SCALE, half_up


@given(st.floats(MIN_SCALE, 60000, width=32))
def test_a_scale_becomes_the_next_half_not_below_it(scale: float) -> None:
    half = np.float16(half_up(torch.tensor([scale])).item())

    assert float(half) >= scale
    assert float(np.nextafter(half, np.float16(0))) < scale


def test_scales_that_half_precision_would_lose_become_the_smallest() -> None:
    assert half_up(torch.tensor([0.0, 1e-9])).tolist() == [MIN_SCALE, MIN_SCALE]
    assert float(np.float16(MIN_SCALE)) == MIN_SCALE
