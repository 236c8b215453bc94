"""Quantize the parts of a checkpoint layer by layer: calibration in, weights by `part.key` out.

Each function is an iterator that keeps one layer's float weights at a time; the caller decides what is kept or written.
All tensors of a part are yielded, also those that stay float (embeddings, norms, biases), so that the three parts
together are a whole model. Norms include the scales folded into them.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, L tokens of a prompt, D decoder width, K inputs,
N outputs of a linear map.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.models import decoder, siglip
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.quantized import Int4Weight, Int8Weight, NamedWeights
from nvila_ros.models.shapes import HEAD
from nvila_ros.quantization import awq, int8
from nvila_ros.quantization.int4 import check_groups, quantize_int4
from nvila_ros.quantization.layers import (
    DECODER,
    TOWER,
    Tap,
    build_part,
    embed_tiles,
    listen,
    run_decoder_layer,
    run_tower_layer,
)
from nvila_ros.quantization.options import DecoderOptions, OnLayer, TowerOptions, ignore_progress

_ATTENTION = tuple(f"self_attn.{key}_proj" for key in "qkv")
_POINTS = (_ATTENTION, ("self_attn.out_proj",), ("mlp.fc1",), ("mlp.fc2",))  # maps of a tower layer by their input
_SMOOTHED = (("layer_norm1", _ATTENTION), ("layer_norm2", ("mlp.fc1",)))


def quantize_tower(
    checkpoint: Checkpoint,
    options: TowerOptions,
    tile_NCHW: np.ndarray,
    on_layer: OnLayer = ignore_progress,
    device: str = "cpu",
) -> NamedWeights:
    """Yield the vision tower's tensors.

    Args:
        checkpoint: what is quantized.
        options: how.
        tile_NCHW: calibration tiles, normalized; used only where the options need them.
        on_layer: called after each layer.
        device: of torch, where the layers run and are searched.

    Raises:
        ConfigError: calibration is needed and there is none.
        CheckpointError: the checkpoint is not whole, or a weight exceeds half precision where that was asked for.
    """
    if options.precision != "w8a8":
        yield from keep_part(checkpoint, "vision_tower", options.precision)
        return
    spec, weights = checkpoint.spec.vision, checkpoint.weights("vision_tower")
    _check_calibration(options, len(tile_NCHW), "tiles")
    for key in weights:
        if ".layers." not in key:
            yield key, weights[key]
    feat_NPE = embed_tiles(spec, weights, tile_NCHW if options.needs_calibration else tile_NCHW[:0], device)
    for i in range(spec.num_live_layers):
        # In a separate call, so that the layer is freed before the next one is read.
        yield from _tower_layer(checkpoint, options, f"{TOWER}.encoder.layers.{i}", feat_NPE, device)
        on_layer("vision_tower", i + 1, spec.num_live_layers)


def quantize_decoder(
    checkpoint: Checkpoint,
    options: DecoderOptions,
    prompts_LD: Sequence[np.ndarray],
    on_layer: OnLayer = ignore_progress,
    device: str = "cpu",
) -> NamedWeights:
    """Yield the decoder's tensors.

    Args:
        checkpoint: what is quantized.
        options: how.
        prompts_LD: embeddings of calibration prompts, visual tokens included; used only where the options need them.
        on_layer: called after each layer.
        device: of torch, where the layers run and are searched.

    Raises:
        ConfigError: the group size does not divide the inputs of a linear map, or calibration is needed and there is
            none.
        CheckpointError: the checkpoint is not whole, or a weight exceeds half precision where that was asked for.
    """
    if options.precision != "w4a16":
        yield from keep_part(checkpoint, "llm", options.precision)
        return
    spec, weights = checkpoint.spec.decoder, checkpoint.weights("llm")
    for num_inputs in (spec.width, spec.mlp_width):
        check_groups(num_inputs, options.group_size)
    _check_calibration(options, len(prompts_LD), "prompts")
    for key in weights:
        if ".layers." not in key and not (key == HEAD and options.is_head_int4):
            yield key, weights[key]
    hidden = [torch.from_numpy(prompt_LD) for prompt_LD in prompts_LD] if options.needs_calibration else []
    for i in range(spec.num_layers):
        yield from _decoder_layer(checkpoint, options, i, hidden, device)
        on_layer("llm", i + 1, spec.num_layers)
    if options.is_head_int4:
        yield HEAD, _head(checkpoint, options, hidden, device)


def keep_part(checkpoint: Checkpoint, part: str, precision: str) -> NamedWeights:
    """Yield a part's tensors as they are (`fp32`) or rounded to half (`fp16`).

    Raises:
        CheckpointError: the checkpoint is not whole, or a weight exceeds half precision.
    """
    weights = checkpoint.weights(part)
    for key in weights:
        yield key, to_half(key, weights[key]) if precision == "fp16" else weights[key]


def to_half(key: str, array: np.ndarray) -> np.ndarray:
    """Round a tensor to float16.

    Raises:
        CheckpointError: a value is too large for it.
    """
    # Not by np.abs, which would copy a table of the vocabulary.
    largest = max(float(array.max(initial=0)), -float(array.min(initial=0)))
    limit = float(np.finfo(np.float16).max)
    if not largest <= limit:
        raise CheckpointError(f"{key} must stay within {limit:g} to fit half precision, got {largest:g}; keep it fp32")
    return array.astype(np.float16)


def _check_calibration(options: TowerOptions | DecoderOptions, count: int, what: str) -> None:
    if options.needs_calibration and not count:
        raise ConfigError(f"{options} must be calibrated, got no {what}; give some, or turn its searches off")


def _tower_layer(
    checkpoint: Checkpoint, options: TowerOptions, name: str, feat_NPE: Tensor, device: str
) -> NamedWeights:
    weights, spec = checkpoint.weights("vision_tower"), checkpoint.spec.vision
    layer = build_part(siglip.VisionLayer, weights, name, spec, device=device)
    with listen(layer, [point[0] for point in _POINTS], feat_NPE.shape[0] * feat_NPE.shape[1]) as taps:
        run_tower_layer(layer, feat_NPE)
    divisors = smooth_layer(layer, taps, options.smooth)
    linears: dict[str, Int8Weight] = {}
    for point in _POINTS:
        maps = [layer.get_submodule(linear) for linear in point]
        scale = None if options.activations == "per_token" else _input_scale(maps, taps[point[0]], divisors[point[0]])
        for linear, each in zip(point, maps, strict=True):
            linears[linear] = int8.quantize_int8(to_inputs_first(each), scale)
    yield from _emit(layer, name, linears)


def smooth_layer(layer: siglip.VisionLayer, taps: dict[str, Tap], strength: float | None) -> dict[str, Tensor]:
    """Fold SmoothQuant's scales into a tower layer, whose float outputs stay the same.

    Args:
        layer: changed in place.
        taps: recorded inputs, by the first map of each point.
        strength: see `TowerOptions.smooth`.

    Returns:
        By tap, the divisor of its inputs, (K,) or a scalar 1.
    """
    divisors = dict.fromkeys(taps, torch.ones(()))
    if strength is None:
        return divisors
    for norm, readers in _SMOOTHED:
        maps = [layer.get_submodule(reader) for reader in readers]
        scale_K = int8.smooth_scales(taps[readers[0]].amax_K, [each.weight for each in maps], strength)
        awq.fold(layer.get_submodule(norm), maps, scale_K)
        divisors[readers[0]] = scale_K
    return divisors


def _input_scale(maps: Sequence[nn.Linear], tap: Tap, divisor_K: Tensor) -> float:
    amax = float((tap.amax_K / divisor_K).max())
    return int8.choose_input_scale(tap.rows() / divisor_K, [each.weight for each in maps], amax)


def _decoder_layer(
    checkpoint: Checkpoint, options: DecoderOptions, i: int, hidden: list[Tensor], device: str
) -> NamedWeights:
    spec, name = checkpoint.spec.decoder, f"{DECODER}.layers.{i}"
    layer = build_part(decoder.DecoderLayer, checkpoint.weights("llm"), name, spec, i, device=device)
    prompts_LD = awq.pick_prompts(hidden) if hidden else []
    with listen(layer, sorted(set(awq.TAPPED.values())), sum(map(len, hidden))) as taps:
        run_decoder_layer(spec, layer, hidden)
    divisors = dict.fromkeys(awq.LINEARS, torch.ones(()))
    if options.awq:
        divisors = awq.fold_scales(spec, layer, prompts_LD, taps, options.group_size)
    linears: dict[str, Int4Weight] = {}
    for linear in awq.LINEARS:
        weight_KN, clip_GN = layer.get_submodule(linear).weight.T.contiguous(), None
        if options.clip and linear not in awq.UNCLIPPED:
            rows_TK = taps[awq.TAPPED[linear]].rows() / divisors[linear]
            clip_GN = awq.search_clip(weight_KN, rows_TK, options.group_size).cpu().numpy()
        linears[linear] = quantize_int4(weight_KN.cpu().numpy(), options.group_size, clip_GN)
    yield from _emit(layer, name, linears)


def _head(checkpoint: Checkpoint, options: DecoderOptions, hidden: Sequence[Tensor], device: str) -> Int4Weight:
    spec, weights = checkpoint.spec.decoder, checkpoint.weights("llm")
    key = f"{DECODER}.embed_tokens.weight" if spec.is_tied else HEAD
    weight_KN = np.ascontiguousarray(weights[key].T)
    if not options.clip:
        return quantize_int4(weight_KN, options.group_size)
    norm = build_part(nn.RMSNorm, weights, f"{DECODER}.norm", spec.width, spec.norm_eps, device=device)
    tap = Tap(1)
    for prompt_LD in hidden:
        tap.add(norm(prompt_LD[-1:].to(device)))  # the head reads only a prompt's last token
    clip_GN = awq.search_clip(torch.from_numpy(weight_KN).to(device), tap.rows(), options.group_size)
    return quantize_int4(weight_KN, options.group_size, clip_GN.cpu().numpy())


def to_inputs_first(linear: nn.Linear) -> np.ndarray:
    """Return a linear map's weight as (K, N)."""
    return np.ascontiguousarray(linear.weight.cpu().numpy().T)


def _emit(layer: nn.Module, name: str, linears: dict[str, Int4Weight] | dict[str, Int8Weight]) -> NamedWeights:
    """Yield a layer's tensors in the checkpoint's order, the named linear maps in their quantized form."""
    for key, tensor in layer.state_dict().items():
        yield f"{name}.{key}", linears.get(key.removesuffix(".weight")) or tensor.cpu().numpy()
