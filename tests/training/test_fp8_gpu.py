"""FP8 products of a GPU's own, held against the emulation of the same numbers.

    pytest -m gpu tests/training/test_fp8_gpu.py

Needs an NVIDIA GPU from Ada (8.9) on; skips without.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from nvila_ros.training.fp8 import Fp8AdamW, convert_linears
from nvila_ros.training.fp8.formats import (
    E4M3,
    E5M2,
    Quantized,
    emulated_product,
    has_fp8_products,
    quantize,
    quantize_groups,
    scaled_product,
)
from nvila_ros.training.tiny import new_model

HAS_FP8 = torch.cuda.is_available() and has_fp8_products(torch.device("cuda"))
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HAS_FP8, reason="needs an NVIDIA GPU of sm_89 or newer")]


def relative(got: Tensor, want: Tensor) -> float:
    return ((got.double().cpu() - want.double().cpu()).norm() / want.double().cpu().norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("first", [E4M3, E5M2])
@pytest.mark.parametrize("shape", [(16, 64, 32), (1000, 1536, 8960), (256, 8960, 1536), (17, 48, 16)])
def test_hardware_multiplies_as_the_emulation_does(
    shape: tuple[int, int, int], first: torch.dtype, dtype: torch.dtype
) -> None:
    m, k, n = shape
    generator = torch.Generator("cuda").manual_seed(0)
    a_MK = quantize(torch.randn(m, k, generator=generator, device="cuda") * 0.1, first)
    b_NK = quantize(torch.randn(n, k, generator=generator, device="cuda"), E4M3)
    b_KN = Quantized(b_NK.codes.t(), b_NK.scale)

    want = emulated_product(a_MK, b_KN, torch.float32)

    assert relative(scaled_product(a_MK, b_KN, dtype, is_fast=False), want) < (1e-3 if dtype == torch.float32 else 4e-3)
    assert relative(scaled_product(a_MK, b_KN, dtype, is_fast=True), want) < 1e-2


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_rounds_to_the_bits_of_the_cpu(source: torch.dtype, dtype: torch.dtype) -> None:
    x = (torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 2, 256)).to(source)

    for rounds in (quantize, quantize_groups):
        got, want = rounds(x.cuda(), dtype), rounds(x, dtype)
        assert torch.equal(got.codes.cpu().view(torch.uint8), want.codes.view(torch.uint8))
        assert torch.equal(got.scale.cpu(), want.scale)


@pytest.mark.parametrize("num_rows", [128, 37])
def test_map_has_the_gradients_of_its_emulation(num_rows: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 512, dtype=torch.bfloat16))
    convert_linears(module)
    x = torch.randn(num_rows, 256, dtype=torch.bfloat16)
    told = torch.randn(num_rows, 512, dtype=torch.bfloat16)

    results = []
    for device in ("cpu", "cuda"):
        mine, here = copy.deepcopy(module).to(device), x.to(device, copy=True).requires_grad_()
        y = mine(here)
        y.backward(told.to(device))
        results.append((y, here.grad, mine[0].weight.grad, mine[0].bias.grad))

    for want, got in zip(*results, strict=True):
        assert relative(got, want) < 6e-3


def test_decoder_has_about_the_gradients_of_its_emulation() -> None:
    """Equal inputs of a product that lie between two codes round either way, and each moves what follows."""
    decoder = new_model(seed=0).llm.bfloat16()
    convert_linears(decoder)
    embeds_BLD = torch.randn(1, 64, decoder.spec.width, dtype=torch.bfloat16)
    told_BLD = torch.randn(1, 64, decoder.spec.width)  # what is normalized last has no gradient along itself

    results = []
    for device in ("cpu", "cuda"):
        mine, here = copy.deepcopy(decoder).to(device), embeds_BLD.to(device, copy=True).requires_grad_()
        with torch.device(device):
            (mine(here).float() * told_BLD.to(device)).mean().backward()
        results.append((here.grad, *(each.grad for each in mine.model["layers"].parameters())))

    for want, got in zip(*results, strict=True):
        assert relative(got, want) < 0.15


def test_optimizer_steps_as_on_the_cpu() -> None:
    weights = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    results = []
    for device in ("cpu", "cuda"):
        parameter = nn.Parameter(weights.to(device, copy=True))
        steps = Fp8AdamW([parameter], lr=1e-2)
        generator = torch.Generator().manual_seed(1)
        for _ in range(20):
            parameter.grad = torch.randn(300, 200, generator=generator).to(device)
            steps.step()
        results.append(parameter.detach().cpu() - weights)

    assert relative(results[1], results[0]) < 0.1  # each device has chances of its own
