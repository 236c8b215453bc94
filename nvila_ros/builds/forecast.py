"""How long quantizing a checkpoint takes on this machine, before it is begun: measured on a layer of each kind, scaled.

The layers that are timed have random weights and are narrow; what passes through them is as long as in the build. What
grows with the calibration set and what does not are timed apart.
Reading, writing and waiting for other programs are not in it.

Shapes: N tiles, C channels, H W pixels, L tokens, D decoder width.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from nvila_ros.builds.builder import TOWER_TOKENS, decoder_options, tower_options
from nvila_ros.builds.recipes import Recipe
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.shapes import expected_shapes
from nvila_ros.models.spec import DecoderSpec, ModelSpec
from nvila_ros.models.threads import limit_threads
from nvila_ros.models.variants import clip_cost, image_cost, tile_range
from nvila_ros.quantization.options import DecoderOptions, TowerOptions
from nvila_ros.quantization.quantize import quantize_decoder, quantize_tower

PROBE_WIDTH = 512
"""Of the layers that are timed; those of a published model are three to ten times as wide."""
PROBE_TOKENS = 1024


@dataclass(frozen=True, slots=True)
class BuildTime:
    """Seconds of each step of a build.

    Attributes:
        calibration: the tower over all calibration media.
        tower: quantizing the tower.
        decoder: quantizing the language model.
    """

    calibration: float
    tower: float
    decoder: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.calibration + self.tower + self.decoder


@dataclass(frozen=True)
class RandomLayers:
    """Stands for a checkpoint of one layer of each part, with random weights."""

    spec: ModelSpec

    def weights(self, *parts: str) -> Mapping[str, np.ndarray]:
        """Return all tensors of the named parts, float32."""
        rng = np.random.default_rng(0)
        shapes = {key: shape for key, shape in expected_shapes(self.spec).items() if key.startswith(parts)}
        return {key: 0.02 * rng.standard_normal(shape, np.float32) for key, shape in shapes.items()}


def forecast_build(recipe: Recipe, spec: ModelSpec, device: str = "cpu") -> BuildTime:
    """Time a small layer of each kind on this machine, and return what a build of the recipe would take.

    Args:
        recipe: of the build.
        spec: of the checkpoint.
        device: of torch, where the layers are searched.
    """
    tower, decoder = tower_options(recipe), decoder_options(recipe)
    num_samples, small = recipe.calibration.num_samples, _shrink(spec)
    media = max(
        image_cost(spec, tile_range(spec)[1]), clip_cost(spec, spec.frames_per_group), key=lambda c: c.num_tiles
    )
    num_tiles, num_tokens = num_samples * media.num_tiles, num_samples * media.num_positions
    with limit_threads(small):
        per_tile, tower_search = _time_tower(small, tower, device)
        per_token, decoder_search = _time_decoder(small, decoder, device)
    # Each tile or token passes every weight once; a search tries a number of roundings of every weight.
    per_tile *= _tile_work(spec) / _tile_work(small)
    per_token *= _num_weights(spec.decoder) / _num_weights(small.decoder)
    tower_search *= (spec.vision.width / small.vision.width) ** 2
    decoder_search *= _num_weights(spec.decoder) / _num_weights(small.decoder)
    layers, live = spec.decoder.num_layers, spec.vision.num_live_layers
    is_calibrated = tower.needs_calibration or decoder.needs_calibration
    kept = min(num_tiles, max(1, TOWER_TOKENS // spec.vision.num_patches))
    return BuildTime(
        calibration=live * per_tile * num_tiles * is_calibrated,
        tower=live * (tower_search + per_tile * kept * tower.needs_calibration) * (tower.precision == "w8a8"),
        decoder=layers * (decoder_search + per_token * num_tokens) * (decoder.precision == "w4a16"),
    )


def _time_tower(spec: ModelSpec, options: TowerOptions, device: str) -> tuple[float, float]:
    """Return the seconds of a tile in a layer, and of the searches in it."""
    px, layers = spec.vision.image_px, _as_checkpoint(spec)
    one, three = (np.zeros((n, 3, px, px), np.float32) for n in (1, 3))
    plain = TowerOptions(activations="per_token")  # without a search

    def seconds(options: TowerOptions, tile_NCHW: np.ndarray) -> float:
        return _seconds(lambda: list(quantize_tower(layers, options, tile_NCHW, device=device)), device)

    short = seconds(plain, one)
    per_tile = max((seconds(plain, three) - short) / 2, 0.0)
    return per_tile, max(seconds(options, one) - per_tile, 0.0)


def _time_decoder(spec: ModelSpec, options: DecoderOptions, device: str) -> tuple[float, float]:
    """Return the seconds of a token in a layer, and of the searches in it."""
    layers, options = _as_checkpoint(spec), dataclasses.replace(options, is_head_int4=False)
    rng = np.random.default_rng(1)
    prompts_LD = [rng.standard_normal((PROBE_TOKENS, spec.decoder.width), np.float32) for _ in range(9)]
    plain = DecoderOptions(group_size=options.group_size, awq=False)  # its search is quick

    def seconds(options: DecoderOptions, prompts_LD: list[np.ndarray]) -> float:
        return _seconds(lambda: list(quantize_decoder(layers, options, prompts_LD, device=device)), device)

    few = seconds(plain, prompts_LD[:1])
    per_token = max((seconds(plain, prompts_LD) - few) / (8 * PROBE_TOKENS), 0.0)
    whole = seconds(options, prompts_LD[:1])
    return per_token, max(whole - per_token * PROBE_TOKENS, 0.0)


def _as_checkpoint(spec: ModelSpec) -> Checkpoint:
    return cast(Checkpoint, RandomLayers(spec))


def _seconds(work: Callable[[], Any], device: str) -> float:
    """Return how long some work takes where no other program does: on a CPU by processor time, over all threads."""
    if device != "cpu":  # its results are waited for
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    start = time.process_time()
    work()
    return (time.process_time() - start) / torch.get_num_threads()


def _shrink(spec: ModelSpec) -> ModelSpec:
    """Return a model of one layer a part, of the same proportions and at most `PROBE_WIDTH` wide."""
    vision, decoder = spec.vision, spec.decoder
    heads = max(1, min(vision.num_heads, PROBE_WIDTH // (vision.width // vision.num_heads)))
    width = heads * (vision.width // vision.num_heads)
    mlp_width = max(1, round(vision.mlp_width * width / vision.width))
    vision = dataclasses.replace(
        vision, width=width, num_heads=heads, mlp_width=mlp_width, num_layers=2, num_live_layers=1
    )
    heads = max(1, min(decoder.num_heads, PROBE_WIDTH // decoder.head_size))
    kv_heads = decoder.num_kv_heads if heads == decoder.num_heads else 1
    width = heads * decoder.head_size
    mlp_width = (
        decoder.mlp_width if heads == decoder.num_heads else -(-decoder.mlp_width * width // decoder.width // 256) * 256
    )
    decoder = dataclasses.replace(
        decoder, width=width, num_heads=heads, num_kv_heads=kv_heads, mlp_width=mlp_width, num_layers=1, vocab_size=16
    )
    projector = dataclasses.replace(spec.projector, out_width=width, in_width=vision.width * max(len(spec.scales), 1))
    return dataclasses.replace(spec, vision=vision, decoder=decoder, projector=projector)


def _tile_work(spec: ModelSpec) -> float:
    """Return the multiplications of a tile in a layer: of its weights, and of each patch with each other."""
    vision = spec.vision
    weights = vision.width * (4 * vision.width + 2 * vision.mlp_width)
    return vision.num_patches * (weights + 2 * vision.num_patches * vision.width)


def _num_weights(spec: DecoderSpec) -> int:
    kv = spec.num_kv_heads * spec.head_size
    return spec.width * (2 * spec.width + 2 * kv + 3 * spec.mlp_width)
