"""AWQ's searches: nothing changes in float, and nothing is worse than plain rounding by their own measure."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nvila_ros.models import decoder
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.spec import DecoderSpec
from nvila_ros.quantization import awq
from nvila_ros.quantization.calibration import Calibration
from nvila_ros.quantization.int4 import fake_int4, group_scales, quantize_int4
from nvila_ros.quantization.layers import DECODER, build_part, listen, run_decoder_layer

GROUP = 16


@pytest.fixture
def prompts(calibration: Calibration) -> list[Tensor]:
    return [torch.from_numpy(prompt_LD.copy()) for prompt_LD in calibration.prompts_LD]


def load_layer(checkpoint: Checkpoint) -> decoder.DecoderLayer:
    return build_part(
        decoder.DecoderLayer, checkpoint.weights("llm"), f"{DECODER}.layers.0", checkpoint.spec.decoder, 0
    )


def run(spec: DecoderSpec, layer: decoder.DecoderLayer, prompts: list[Tensor]) -> Tensor:
    outputs = list(prompts)
    run_decoder_layer(spec, layer, outputs)
    return torch.cat(outputs)


def assert_same(got: Tensor, want: Tensor) -> None:
    """Compare up to the rounding of float32 sums, relative to the largest value."""
    assert (got - want).abs().max() < 1e-5 * want.abs().max()


def fold(spec: DecoderSpec, layer: decoder.DecoderLayer, prompts: list[Tensor]) -> dict[str, Tensor]:
    with listen(layer, sorted(set(awq.TAPPED.values())), sum(map(len, prompts))) as taps:
        run(spec, layer, prompts)
    return awq.fold_scales(spec, layer, prompts, taps, GROUP)


def test_folding_leaves_a_layers_float_outputs_equal(checkpoint: Checkpoint, prompts: list[Tensor]) -> None:
    spec, layer = checkpoint.spec.decoder, load_layer(checkpoint)
    before_LD, old_norm = run(spec, layer, prompts), layer.post_attention_layernorm.weight

    divisors = fold(spec, layer, prompts)

    assert_same(run(spec, layer, prompts), before_LD)
    assert (layer.post_attention_layernorm.weight - old_norm).abs().max() > 1e-3
    assert torch.equal(divisors["self_attn.o_proj"], torch.ones(spec.width))  # grouped queries share values


def test_without_grouped_queries_the_value_map_is_folded_too(checkpoint: Checkpoint, prompts: list[Tensor]) -> None:
    spec = dataclasses.replace(checkpoint.spec.decoder, num_kv_heads=checkpoint.spec.decoder.num_heads)
    torch.manual_seed(0)
    layer = decoder.DecoderLayer(spec, 0).eval().requires_grad_(False)
    before_LD = run(spec, layer, prompts)

    divisors = fold(spec, layer, prompts)

    assert_same(run(spec, layer, prompts), before_LD)
    assert awq.VALUE in awq.sites_of(layer)
    assert divisors["self_attn.o_proj"].std() > 0


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_searched_scales_are_never_worse_than_plain_rounding(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_TK = torch.randn(40, 32, generator=generator) * torch.logspace(-1, 1, 32)
    linear = nn.Linear(32, 12, bias=False).requires_grad_(False)
    linear.weight.copy_(torch.randn(12, 32, generator=generator))
    weight_KN = linear.weight.T.contiguous()

    scale_K = awq.search_scale([linear], lambda: linear(x_TK), x_TK.abs().mean(0), GROUP)

    def error(scale_K: Tensor) -> float:
        scaled_KN = weight_KN * scale_K[:, None]
        rounded_KN = fake_int4(scaled_KN, group_scales(scaled_KN, GROUP)) / scale_K[:, None]
        return float((x_TK @ (rounded_KN - weight_KN)).square().sum())

    assert error(scale_K) <= error(torch.ones(32)) * (1 + 1e-4)
    assert torch.equal(linear.weight.T, weight_KN)  # a search leaves no trace


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_searched_clips_are_the_best_of_all_tried_by_each_groups_output(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight_KN = rng.standard_t(3, (32, 5)).astype(np.float32)
    rows_TK = rng.standard_normal((20, 32)).astype(np.float32)

    clip_GN = awq.search_clip(torch.from_numpy(weight_KN), torch.from_numpy(rows_TK), GROUP).numpy()

    def errors(clip_GN: np.ndarray) -> np.ndarray:
        wrong_KN = quantize_int4(weight_KN, GROUP, clip_GN).dequantize() - weight_KN
        return np.stack([np.square(rows_TK[:, g : g + GROUP] @ wrong_KN[g : g + GROUP]).sum(0) for g in (0, GROUP)])

    found = errors(clip_GN)
    for clip in awq.CLIPS:
        assert (found <= errors(np.full((2, 5), clip, np.float32)) * (1 + 1e-3)).all()


def test_prompts_are_picked_evenly_and_never_none() -> None:
    short = [torch.full((512, 1), float(i)) for i in range(16)]
    endless = [torch.zeros(100_000, 1)] * 3

    assert [int(prompt[0, 0]) for prompt in awq.pick_prompts(short)] == [0, 4, 8, 12]
    assert len(awq.pick_prompts(endless)) == 1
