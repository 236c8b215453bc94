"""AWQ for one decoder layer: search scales that preserve salient inputs, then clip each group's range.

A norm or linear map may divide each of its output channels by s if the linear maps behind it multiply by s: in float
nothing changes, but channels with a large s are rounded more finely. The search tries s = mean|x|^alpha for 20 alphas
from 0 (plain rounding) on and keeps the one with the smallest error at the output of the module behind. Then each
group's scale is reduced in ten steps to a half, and the one with the smallest error of the group's contribution is
kept. Query and key are not clipped, since only their product matters.

Differs from llm-awq in the grid of values: symmetric [-8, 7], as TensorRT and OpenVINO take it. The clip search needs
no outputs: a group's squared error is d H d with H the Gram matrix of its inputs and d the weights' error, so it is
exact over all sampled tokens at the cost of one small product for each step.

Source: AWQ (arXiv 2306.00978). Shapes: T tokens, L tokens of a prompt, D decoder width, K inputs, N outputs, G groups,
I inputs of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nvila_ros.models import decoder
from nvila_ros.models.spec import DecoderSpec
from nvila_ros.quantization.int4 import fake_int4, group_scales
from nvila_ros.quantization.layers import Tap, device_of
from nvila_ros.quantization.rounding import half_up

NUM_ALPHAS = 20
MIN_MEAN = 1e-4  # bounds the scale of a channel that is always zero
CLIPS = tuple(1 - i / 20 for i in range(11))
UNCLIPPED = ("self_attn.q_proj", "self_attn.k_proj")
ATTENTION_TOKENS = 2048
"""Tokens of whole prompts on which the attention's error is measured; at least one prompt."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a scale can be folded: the module that divides, those that multiply, the one whose error is measured."""

    writer: str
    readers: tuple[str, ...]
    measured: str


ATTENTION = Site("input_layernorm", tuple(f"self_attn.{key}_proj" for key in "qkv"), "self_attn")
VALUE = Site("self_attn.v_proj", ("self_attn.o_proj",), "self_attn.o_proj")
GATE_UP = Site("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj"), "mlp")
DOWN = Site("mlp.up_proj", ("mlp.down_proj",), "mlp.down_proj")
LINEARS = (*ATTENTION.readers, *VALUE.readers, *GATE_UP.readers, *DOWN.readers)
"""Every linear map of a decoder layer."""
TAPPED = {reader: site.readers[0] for site in (ATTENTION, VALUE, GATE_UP, DOWN) for reader in site.readers}
"""The tap that records a linear map's inputs: that of the first map that reads them."""


def sites_of(layer: decoder.DecoderLayer) -> tuple[Site, ...]:
    """Return the sites of a layer; VALUE is none under grouped-query attention, where heads share values."""
    is_square = layer.self_attn.v_proj.weight.shape == layer.self_attn.o_proj.weight.shape
    return (ATTENTION, *([VALUE] if is_square else []), GATE_UP, DOWN)


@torch.inference_mode()
def fold_scales(
    spec: DecoderSpec,
    layer: decoder.DecoderLayer,
    prompts_LD: Sequence[Tensor],
    taps: Mapping[str, Tap],
    group_size: int,
) -> dict[str, Tensor]:
    """Search the scale of every site and fold it into the layer, whose float outputs stay the same.

    Args:
        spec: the decoder's.
        layer: changed in place.
        prompts_LD: the layer's inputs, whole prompts, for the attention's error.
        taps: recorded inputs of the linear maps, by `TAPPED`.
        group_size: inputs that share a scale.

    Returns:
        By linear map, the divisor of its inputs, (K,); 1 where nothing was folded.
    """
    found = {}
    for site in sites_of(layer):
        run = _measured_output(spec, layer, site, prompts_LD, taps)
        tap = taps[TAPPED[site.readers[0]]]
        found[site] = search_scale(_linears(layer, site.readers), run, tap.mean_abs(), group_size)
    device = device_of(layer)
    divisors = {name: torch.ones(layer.get_submodule(name).in_features, device=device) for name in LINEARS}
    for site, scale_K in found.items():  # only now: every search must see the layer as its inputs were recorded
        fold(layer.get_submodule(site.writer), _linears(layer, site.readers), scale_K)
        divisors |= dict.fromkeys(site.readers, scale_K)
    return divisors


def search_scale(
    readers: Sequence[nn.Linear], run: Callable[[], Tensor], mean_abs_K: Tensor, group_size: int
) -> Tensor:
    """Return the scale of the readers' inputs with the smallest error of the measured output, (K,).

    Args:
        readers: linear maps that share their inputs; unchanged afterwards.
        run: computes the measured output with the readers' current weights.
        mean_abs_K: mean magnitude of each input.
        group_size: inputs that share a scale.
    """
    want, weights = run(), [reader.weight for reader in readers]
    weights_KN = [weight.T.contiguous() for weight in weights]
    best_K = torch.ones_like(mean_abs_K)
    best_error = torch.full((), torch.inf, dtype=torch.float64, device=best_K.device)
    for step in range(NUM_ALPHAS):
        scale_K = _candidate(mean_abs_K, step / NUM_ALPHAS)
        for reader, weight_KN in zip(readers, weights_KN, strict=True):
            reader.weight = nn.Parameter(_round_scaled(weight_KN, scale_K, group_size).T, requires_grad=False)
        error = (run() - want).square().sum(dtype=torch.float64)
        best_K = torch.where(error < best_error, scale_K, best_K)  # on the device: a GPU is not waited for
        best_error = torch.fmin(error, best_error)
    for reader, weight in zip(readers, weights, strict=True):
        reader.weight = weight
    return best_K


def fold(writer: nn.Module, readers: Sequence[nn.Linear], scale_K: Tensor) -> None:
    """Divide the outputs of a norm or linear map by a scale, and multiply the weights that read them."""
    # New tensors: those read from disk may be read-only.
    by_row = scale_K if writer.weight.ndim == 1 else scale_K[:, None]
    writer.weight = nn.Parameter(writer.weight / by_row, requires_grad=False)
    if getattr(writer, "bias", None) is not None:
        writer.bias = nn.Parameter(writer.bias / scale_K, requires_grad=False)
    for reader in readers:
        reader.weight = nn.Parameter(reader.weight * scale_K, requires_grad=False)


@torch.inference_mode()
def search_clip(weight_KN: Tensor, rows_TK: Tensor, group_size: int) -> Tensor:
    """Return the clip ratio of each group with the smallest error, (G, N) of `CLIPS`.

    Args:
        weight_KN: a linear map's weight, scales folded.
        rows_TK: sampled tokens of its inputs, divided by the folded scales.
        group_size: inputs that share a scale.
    """
    rows_TGI = rows_TK.unflatten(1, (-1, group_size))
    gram_GII = torch.einsum("tgi,tgj->gij", rows_TGI, rows_TGI)
    widest_GN = group_scales(weight_KN, group_size)
    best_GN, best_error_GN = torch.ones_like(widest_GN), torch.full_like(widest_GN, float("inf"))
    for clip in CLIPS:
        wrong_GIN = (fake_int4(weight_KN, half_up(widest_GN * clip)) - weight_KN).unflatten(0, (-1, group_size))
        error_GN = (wrong_GIN * (gram_GII @ wrong_GIN)).sum(1)
        is_better_GN = error_GN < best_error_GN
        best_GN = torch.where(is_better_GN, clip, best_GN)
        best_error_GN = torch.where(is_better_GN, error_GN, best_error_GN)
    return best_GN


def pick_prompts(prompts_LD: Sequence[Tensor]) -> list[Tensor]:
    """Return prompts spread evenly over the calibration set, of `ATTENTION_TOKENS` in all or one."""
    mean_length = sum(map(len, prompts_LD)) / len(prompts_LD)
    num_picked = min(max(1, int(ATTENTION_TOKENS / mean_length)), len(prompts_LD))
    return [prompts_LD[i * len(prompts_LD) // num_picked] for i in range(num_picked)]


def _measured_output(
    spec: DecoderSpec, layer: decoder.DecoderLayer, site: Site, prompts_LD: Sequence[Tensor], taps: Mapping[str, Tap]
) -> Callable[[], Tensor]:
    """Return a function that computes a site's measured output on calibration inputs."""
    module = layer.get_submodule(site.measured)
    if site != ATTENTION:
        rows_TK = taps[TAPPED[site.readers[0]]].rows()
        return lambda: module(rows_TK)
    device = device_of(layer)
    calls = [
        (
            layer.input_layernorm(x.to(device))[None],
            *decoder.rotary_tables(spec, torch.arange(len(x), device=device)),
            None,
        )
        for x in prompts_LD
    ]
    return lambda: torch.cat([module(*call)[0] for call in calls])


def _linears(layer: decoder.DecoderLayer, names: Sequence[str]) -> list[nn.Linear]:
    return [layer.get_submodule(name) for name in names]


def _candidate(mean_abs_K: Tensor, alpha: float) -> Tensor:
    """Return mean|x|^alpha, normalized so that its extremes are reciprocal."""
    scale_K = mean_abs_K.clamp(min=MIN_MEAN) ** alpha
    return scale_K / (scale_K.max() * scale_K.min()).sqrt()


def _round_scaled(weight_KN: Tensor, scale_K: Tensor, group_size: int) -> Tensor:
    scaled_KN = weight_KN * scale_K[:, None]
    return fake_int4(scaled_KN, group_scales(scaled_KN, group_size)) / scale_K[:, None]
