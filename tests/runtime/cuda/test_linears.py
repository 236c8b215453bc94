"""Quantized maps on a device, and the kernel of four bits by Triton's interpreter, against plain products."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.models.quantized import Int4Weight, Int8Weight
from nvila_ros.quantization.int4 import quantize_int4
from nvila_ros.quantization.int8 import quantize_int8
from nvila_ros.quantization.simulate import Int8Linear
from nvila_ros.runtime.cuda.linears import FEW_TOKENS, DeviceInt4Linear, DeviceInt8Linear

CPU = torch.device("cpu")


def random_int4(seed: int, num_inputs: int, num_outputs: int, group_size: int) -> Int4Weight:
    weight_KN = np.random.default_rng(seed).standard_normal((num_inputs, num_outputs)).astype(np.float32)
    return quantize_int4(weight_KN, group_size)


@settings(max_examples=12, deadline=None)
@given(
    num_tokens=st.integers(1, FEW_TOKENS),
    num_outputs=st.integers(1, 50),
    num_groups=st.integers(1, 3),
    group_size=st.sampled_from([32, 64, 128]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_kernel_equals_the_product_with_what_the_weight_stands_for(
    num_tokens: int, num_outputs: int, num_groups: int, group_size: int, dtype: torch.dtype, seed: int
) -> None:
    pytest.importorskip("triton")
    weight = random_int4(seed, num_groups * group_size, num_outputs, group_size)
    x_TK = torch.randn(num_tokens, num_groups * group_size, generator=torch.Generator().manual_seed(seed)).to(dtype)

    got = DeviceInt4Linear(weight, None, dtype, CPU, uses_kernel=True)(x_TK)

    want = x_TK.double() @ torch.from_numpy(weight.dequantize()).double()
    step = torch.finfo(dtype).eps * want.abs().clamp(min=1)
    assert got.dtype == dtype
    assert ((got.double() - want).abs() <= step).all()


@pytest.mark.parametrize("num_tokens", [1, FEW_TOKENS, FEW_TOKENS + 1])
@pytest.mark.parametrize("shape", [(2,), ()])
def test_four_bits_read_back_are_the_weight(num_tokens: int, shape: tuple[int, ...]) -> None:
    weight = random_int4(1, 48, 10, 16)
    bias = torch.randn(10)
    linear = DeviceInt4Linear(weight, bias, torch.float32, CPU, uses_kernel=True)
    x = torch.randn(*shape, num_tokens, 48)

    assert not linear.uses_kernel  # groups of 16 are below what it takes
    assert np.array_equal(linear.dequantized().numpy(), weight.dequantize().T)
    assert torch.allclose(linear(x), x @ torch.from_numpy(weight.dequantize()) + bias, atol=1e-5)


@pytest.mark.parametrize("input_scale", [None, 0.03])
@pytest.mark.parametrize("num_tokens", [1, 40])
def test_eight_bits_equal_the_simulation(input_scale: float | None, num_tokens: int) -> None:
    weight_KN = np.random.default_rng(3).standard_normal((64, 24)).astype(np.float32)
    weight: Int8Weight = quantize_int8(weight_KN, input_scale)
    bias = torch.randn(24)
    want = Int8Linear(weight, has_bias=True)
    want.bias.data = bias
    x_NTK = torch.randn(2, num_tokens, 64)

    got = DeviceInt8Linear(weight, bias, CPU)(x_NTK)

    assert torch.equal(got, want(x_NTK))
