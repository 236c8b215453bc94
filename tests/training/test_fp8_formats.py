"""FP8 formats and expanded optimizer states: held against ml_dtypes' rounding and against bounds worked out by hand."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.training.fp8 import expansion
from nvila_ros.training.fp8.expansion import STATE_GROUP, contract, expand
from nvila_ros.training.fp8.formats import (
    E4M3,
    E5M2,
    GROUP,
    Quantized,
    dequantize_groups,
    emulated_product,
    quantize,
    quantize_groups,
    scaled_product,
)

pytestmark = pytest.mark.slow  # properties over whole tensors

NUMPY = {E4M3: ml_dtypes.float8_e4m3fn, E5M2: ml_dtypes.float8_e5m2}
# Normal values are rounded to within half a step of 3 or 2 bits behind the point; the others to half of the smallest.
HALF_STEP = {E4M3: (2.0**-4, 2.0**-10), E5M2: (2.0**-3, 2.0**-17)}
formats = st.sampled_from([E4M3, E5M2])
magnitudes = st.floats(2.0**-90, 2.0**90)


def values(num: int) -> st.SearchStrategy[list[float]]:
    """Values of any magnitude beside each other, also 0."""
    return st.lists(st.just(0.0) | magnitudes | magnitudes.map(lambda x: -x), min_size=num, max_size=num)


def dequantize(x: Quantized) -> torch.Tensor:
    return x.codes.double() * x.scale.double()


@given(dtype=formats, listed=values(24))
def test_values_are_rounded_as_the_format_rounds(dtype: torch.dtype, listed: list[float]) -> None:
    x = torch.tensor(listed)

    codes, scale = quantize(x, dtype)

    want = (x.numpy() / scale.item()).astype(NUMPY[dtype]).astype(np.float32)
    assert codes.float().tolist() == want.tolist()


@given(dtype=formats, listed=values(24))
def test_scale_is_the_least_power_of_two_that_fits(dtype: torch.dtype, listed: list[float]) -> None:
    x = torch.tensor(listed)

    scale = quantize(x, dtype).scale.item()

    ratio = x.abs().max().item() / torch.finfo(dtype).max
    want = 2.0 ** math.ceil(math.log2(ratio)) if ratio > 0 else 2.0**-126
    assert scale == max(want, 2.0**-126)


@given(dtype=formats, listed=values(2 * GROUP))
def test_each_group_is_rounded_on_its_own(dtype: torch.dtype, listed: list[float]) -> None:
    x = torch.tensor(listed)

    got = dequantize_groups(quantize_groups(x, dtype))

    want = torch.cat([dequantize(quantize(half, dtype)).float() for half in x.split(GROUP)])
    assert torch.equal(got, want)


@given(dtype=formats, listed=values(24))
def test_error_is_at_most_half_a_step(dtype: torch.dtype, listed: list[float]) -> None:
    x = torch.tensor(listed)

    quantized = quantize(x, dtype)

    error = (dequantize(quantized) - x).abs()
    relative, absolute = HALF_STEP[dtype]
    assert (error <= (x.abs() * relative).clamp(min=absolute * quantized.scale)).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_what_is_no_number_spoils_its_whole_tensor(dtype: torch.dtype, bad: float) -> None:
    x = torch.ones(GROUP).index_fill(0, torch.tensor([3]), bad)

    assert dequantize(quantize(x, dtype)).isnan().all()
    assert dequantize_groups(quantize_groups(x, dtype)).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types_lose_nothing_to_the_scale(dtype: torch.dtype) -> None:
    x = torch.linspace(-3e-5, 3e-5, 64).to(dtype)

    narrow, wide = quantize(x, E4M3), quantize(x.float(), E4M3)

    assert torch.equal(narrow.codes.float(), wide.codes.float())
    assert narrow.scale == wide.scale
    assert torch.equal(dequantize_groups(quantize_groups(x, E4M3)), dequantize_groups(quantize_groups(x.float(), E4M3)))


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", [E4M3, E5M2])
def test_emulated_product_is_the_scaled_one(first: torch.dtype, out_dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a_MK = quantize(torch.randn(48, 64, generator=generator) * 1e-3, first)
    b_NK = quantize(torch.randn(32, 64, generator=generator) * 5, E4M3)
    b_KN = b_NK._replace(codes=b_NK.codes.t())

    emulated = emulated_product(a_MK, b_KN, out_dtype)

    exact = dequantize(a_MK) @ dequantize(b_KN)
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}[out_dtype]
    assert (emulated.double() - exact).abs().max() <= tolerance * exact.abs().max()
    scaled = scaled_product(a_MK, b_KN, out_dtype, is_fast=False)  # torch's own on this machine's CPU
    assert (emulated.double() - scaled.double()).abs().max() <= tolerance * exact.abs().max()


def groups() -> st.SearchStrategy[torch.Tensor]:
    """Groups as they come: of one magnitude or spread over many binades, with zeros, full or mostly empty."""

    def build(base: float, binades: list[float], zeros: list[bool], signs: list[bool]) -> torch.Tensor:
        size = 2.0 ** (base + torch.tensor(binades))
        size = size * torch.tensor(signs).float().mul(2).sub(1)
        return size.masked_fill(torch.tensor(zeros), 0.0)[None]

    lists = {"min_size": STATE_GROUP, "max_size": STATE_GROUP}
    spread = st.sampled_from([0.0, 0.01, 1.0, 8.0, 16.0, 18.0, 33.0, 40.0])
    return spread.flatmap(
        lambda most: st.builds(
            build,
            st.floats(-80, 40),
            st.lists(st.floats(0, most), **lists),
            st.lists(st.sampled_from([False, False, True]), **lists),
            st.lists(st.booleans(), **lists),
        )
    )


@given(x_GN=groups())
def test_expansion_is_undone_within_half_a_step_of_its_codes(x_GN: torch.Tensor) -> None:
    expanded = expand(x_GN)
    got = contract(expanded).double()

    k, top = expanded.k_G.double() / 16, expanded.top_G.double()
    ideal = 448 * (x_GN.double().abs() / top.clamp(min=1e-300)) ** k  # of each code, before it is rounded
    half_step = (ideal * 2.0**-4).clamp(min=2.0**-10) * (1 + 1e-4)  # powers are computed in float32
    low = top * ((ideal - half_step).clamp(min=0) / 448) ** (1 / k)
    high = top * ((ideal + half_step) / 448) ** (1 / k)
    assert (got.abs() >= low * (1 - 1e-5)).all()
    assert (got.abs() <= high * (1 + 1e-5)).all()


@given(x_GN=groups())
def test_zeros_signs_and_the_largest_come_back_to_the_bit(x_GN: torch.Tensor) -> None:
    got = contract(expand(x_GN))

    assert (got[x_GN == 0] == 0).all()
    assert (got * x_GN >= 0).all()
    largest = x_GN.abs().argmax()
    assert got.flatten()[largest] == x_GN.flatten()[largest]


@given(x_GN=groups())
def test_exponent_is_the_largest_that_keeps_the_smallest_value_in_range(x_GN: torch.Tensor) -> None:
    k = expand(x_GN).k_G.item() / 16

    sizes = x_GN.abs()[x_GN != 0].double()
    if not len(sizes):
        return
    binades = math.log2(sizes.max() / sizes.min())
    log2_range = math.log2(448 * 448 / 2)
    assert 0.5 <= k <= 255 / 16
    assert k == 0.5 or k * binades <= log2_range + 1e-3
    assert k == 255 / 16 or (k + 1 / 16) * binades > log2_range - 1e-3
    assert k >= 1 or binades > log2_range - 1e-3  # a range is given up only where the format does not hold it


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(x_GN=groups(), seed=st.integers(0, 2**40))
def test_what_divides_is_never_rounded_to_zero(x_GN: torch.Tensor, seed: int) -> None:
    x_GN = x_GN.abs()

    got = contract(expand(x_GN, chance(seed)))

    assert ((got > 0) == (x_GN > 0)).all()
    assert got.max() == x_GN.max()


def test_without_chance_a_wide_group_loses_its_smallest() -> None:
    x_GN = torch.full((1, STATE_GROUP), 1e-12)
    x_GN[0, 0] = 1.0

    assert (contract(expand(x_GN))[0, 1:] == 0).all()
    kept = contract(expand(x_GN, chance()))[0, 1:]
    assert (kept >= 1e-12).all()  # too large a divisor makes a small step, too small a one a huge one
    assert (kept <= 2.0**-33).all()


@given(listed=st.lists(st.floats(0.007, 448), min_size=8, max_size=8))
def test_chance_rounds_to_either_neighbour_and_keeps_the_mean(listed: list[float]) -> None:
    values, num_draws = torch.tensor(listed), 2000
    x_GN = torch.zeros(num_draws, STATE_GROUP)
    x_GN[:, 0], x_GN[:, 1] = 1, 2.0**-16  # so wide that k is 1
    x_GN[:, 2:10] = values / 448

    codes_GN, _, k_G = expand(x_GN, chance())

    assert (k_G == 16).all()
    drawn, step = codes_GN[:, 2:10].float(), (2.0 ** values.log2().floor() / 8).clamp(min=2.0**-9)
    assert ((drawn - values).abs() <= step * 1.001).all()
    assert ((drawn.mean(0) - values).abs() <= 3 * step / num_draws**0.5 + 1e-5 * values).all()


def test_a_second_moment_follows_gradients_that_fade_beside_others() -> None:
    """Half of a group's gradients become a tenth: rounded to the nearest, the moment would stay far too large."""
    generator, beta = chance(1), 0.995
    v_GN, exact_GN, nearest_GN = (torch.zeros(8, STATE_GROUP) for _ in range(3))
    for step in range(1800):
        grad_GN = torch.randn(8, STATE_GROUP, generator=generator)
        if step >= 300:
            grad_GN[:, ::2] *= 0.1
        v_GN = beta * contract(expand(v_GN, chance(step))) + (1 - beta) * grad_GN**2
        nearest_GN = beta * contract(expand(nearest_GN)) + (1 - beta) * grad_GN**2
        exact_GN = beta * exact_GN + (1 - beta) * grad_GN**2

    ratio, nearest = ((each / exact_GN)[:, ::2].mean().item() for each in (v_GN, nearest_GN))
    assert ratio == pytest.approx(1, abs=0.1)
    assert nearest > 1.5


def test_nearly_constant_group_is_told_apart_more_finely_than_plain_fp8() -> None:
    x_GN = torch.linspace(1.0, 1.1, STATE_GROUP)[None]

    expanded = (contract(expand(x_GN)) / x_GN - 1).abs().max()
    plain = (dequantize(quantize(x_GN, E4M3)) / x_GN - 1).abs().max()

    assert expanded < plain / 10


def test_a_group_with_a_nan_is_nan_alone() -> None:
    x_GN = torch.ones(2, STATE_GROUP)
    x_GN[0, 5] = math.nan

    got = contract(expand(x_GN))

    assert got[0].isnan().all()
    assert torch.equal(got[1], x_GN[1])


def test_constants_of_the_format_are_torchs() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(E4M3).float()
    positive = codes[codes > 0]

    assert (positive.min().item(), positive.max().item()) == (expansion.SMALLEST, expansion.LARGEST)
