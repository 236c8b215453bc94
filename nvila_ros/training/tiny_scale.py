"""nvila-tiny-scale: nvila-tiny that shows an image at three scales and averages a clip's frames by fours.

It starts as nvila-tiny with a projector that reads three times the channels. Whatever is not a single image repeats one
tile's features for all scales, and there the widened projector gives at first what the narrow one gave.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import ModelSpec
from nvila_ros.paths import share_path
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.training import tiny
from nvila_ros.training.save import copy_tokenizer

SPEC = replace(
    tiny.SPEC,
    name="nvila-tiny-scale",
    projector=replace(tiny.SPEC.projector, in_width=3 * tiny.SPEC.vision.width),
    image_mode="dynamic_s2",
    scales=(112, 224, 336),
    merge_scale=-1,
    video_pools=((4, 1, 1),),
    num_video_frames=32,
)
START = "nvila-tiny"  # embedded checkpoint


def new_model(seed: int) -> Nvila:
    """Return nvila-tiny widened; the seed is that of the training's heads."""
    torch.manual_seed(seed)
    return widen(load_torch_model(open_checkpoint(start_path())), SPEC)


def write_tokenizer(folder: Path) -> None:
    """Copy nvila-tiny's tokenizer: its bytes spell the new words."""
    copy_tokenizer(start_path(), folder)


def widen(model: Nvila, spec: ModelSpec) -> Nvila:
    """Return a model of `spec` that says of repeated features what `model` says of them once.

    Args:
        model: as `spec` but for the number of scales.
        spec: of the wide model, its projector an `mlp_downsample`.
    """
    wide = Nvila(spec)
    state = model.state_dict()
    times, width = spec.projector.in_width // model.spec.projector.in_width, model.spec.projector.in_width
    for name in ("1.weight", "1.bias"):
        state[f"mm_projector.layers.{name}"] = _repeat(state[f"mm_projector.layers.{name}"], width, times)
    name = "mm_projector.layers.2.weight"
    state[name] = _repeat(state[name], width, times) / times
    wide.load_state_dict(state)
    return wide


def narrow(model: Nvila, spec: ModelSpec) -> Nvila:
    """Return a model of `spec` that says of features what `model` says of them repeated: one tile without the scales.

    The LayerNorm's weights differ from copy to copy once trained, so they move into the linear map behind it.
    """
    slim = Nvila(spec)
    state = model.state_dict()
    width = spec.projector.in_width
    times = model.spec.projector.in_width // width
    stem = "mm_projector.layers"
    scale, shift, weight = (state[f"{stem}.{name}"] for name in ("1.weight", "1.bias", "2.weight"))
    state[f"{stem}.1.weight"], state[f"{stem}.1.bias"] = slim.mm_projector.layers[1].state_dict().values()
    state[f"{stem}.2.bias"] = state[f"{stem}.2.bias"] + weight @ shift
    state[f"{stem}.2.weight"] = (weight * scale).unflatten(-1, (-1, times, width)).sum(-2).flatten(-2)
    slim.load_state_dict(state)
    return slim


def _repeat(weight: Tensor, width: int, times: int) -> Tensor:
    """Repeat the channels of each merged patch: the last axis holds (row, column, channel)."""
    return weight.unflatten(-1, (-1, width)).tile(times).flatten(-2)


def start_path() -> Path:
    """Return the folder of the checkpoint that siblings of nvila-tiny start with."""
    return share_path("checkpoints", START)
