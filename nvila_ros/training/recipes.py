"""What the embedded checkpoints were trained with: one recipe each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from nvila_ros.errors import ConfigError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import ModelSpec
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.training import tiny, tiny_scale, tiny_when
from nvila_ros.training.mix import Mix
from nvila_ros.training.save import copy_tokenizer
from nvila_ros.world import photographs
from nvila_ros.world.wide_scenes import Look


@dataclass(frozen=True, slots=True)
class TrainingStage:
    """One stage of a training.

    Attributes:
        tower_lr: peak learning rate of the tower, 0 to leave it as it is; the others' is `lr`.
        is_bf16: multiply in bf16, with weights and sums in fp32; half as long where the processor can.
    """

    name: str
    mix: Mix
    num_steps: int
    lr: float
    tower_lr: float
    is_bf16: bool = True


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """One embedded checkpoint.

    Attributes:
        new_model: returns what the training starts from, by seed.
        write_tokenizer: writes the tokenizer's files to a folder.
    """

    spec: ModelSpec
    stages: tuple[TrainingStage, ...]
    new_model: Callable[[int], Nvila]
    write_tokenizer: Callable[[Path], None]

    def continued(self, start: Path, stages: Sequence[str]) -> TrainingRecipe:
        """Return the recipe of some stages alone, which start with a checkpoint that the earlier ones wrote.

        Args:
            start: folder of the checkpoint.
            stages: names of those that are left to do.

        Raises:
            ConfigError: no stage is named so.
        """
        unknown = sorted(set(stages) - {stage.name for stage in self.stages})
        if unknown or not stages:
            known = ",".join(stage.name for stage in self.stages)
            raise ConfigError(f"--stages must be some of {known}, got {','.join(unknown) or 'none'}")

        def new_model(seed: int) -> Nvila:
            torch.manual_seed(seed)
            return load_torch_model(open_checkpoint(start))

        left = tuple(stage for stage in self.stages if stage.name in stages)
        return replace(self, stages=left, new_model=new_model, write_tokenizer=partial(copy_tokenizer, start))

    def shortened(self, share: float) -> TrainingRecipe:
        """Return the recipe with a share of each stage's steps, at least one."""
        stages = [replace(stage, num_steps=max(1, round(share * stage.num_steps))) for stage in self.stages]
        return replace(self, stages=tuple(stages))


_RELATIONS = Mix(
    kinds=("images", "images", "images", "images", "images", "events", "images", "images", "images", "clips"),
    seed_base=0,
    num_samples=16,
    num_clips=8,
    num_more=6,
    has_patches=False,
    has_events=False,
)
_SETTLE = Mix(
    kinds=("events", "images", "events", "images", "clips"),
    seed_base=5 << 24,
    num_samples=32,
    num_clips=16,
    clip_grids=((8, 1),),
    has_patches=False,
)
_CROWDS = replace(_SETTLE, kinds=("events", "images", "events"), seed_base=7 << 24, palette_share=0.7, least_objects=4)
_COUNTS = replace(
    _CROWDS,
    kinds=("events", "images"),
    seed_base=9 << 24,
    num_turns=12,
    more_kinds=("count-color", "size"),
    num_more=4,
    least_of_palette=3,
)
_MOTION = replace(_COUNTS, kinds=("clips", "images", "clips", "events"), seed_base=11 << 24)
_WIDE = Mix(
    kinds=(
        *("wide", "wide-dense", "wide", "images", "wide", "wide-dense", "wide", "wide-clips"),
        *("wide", "wide-dense", "wide", "images", "wide", "wide-dense", "wide", "wide-events"),
        *("wide", "wide-dense", "wide", "images", "wide", "wide-dense", "clips", "events"),
    ),
    seed_base=13 << 24,
    num_samples=24,
    num_clips=8,
    num_dense=96,
    num_turns=7,
    clip_grids=((8, 1),),
    palette_share=0.25,
    look=Look(photographs=photographs.TRAINING, photograph_share=0.4),
    second_camera_share=0.25,
    has_events=False,
)
# Crowds, counts by colour and what vanishes are the first to be forgotten in the wide world.
_HOLD = replace(
    _WIDE,
    kinds=(
        *("wide", "wide-dense", "wide", "images", "events", "wide", "clips", "images"),
        *("wide", "wide-dense", "wide", "images", "wide-events", "wide", "events", "images"),
        *("wide", "wide-dense", "wide-clips", "images", "events", "wide", "clips", "images"),
    ),
    seed_base=29 << 24,
    palette_share=0.4,
    least_of_palette=3,
    least_objects=3,
    more_kinds=("count-color",),
    num_more=2,
)
_TINY_STAGES = (
    TrainingStage("tower", Mix(kinds=("dense",), seed_base=0, num_samples=64), 4000, 1e-3, 1e-3),
    TrainingStage(
        "projector", Mix(kinds=("images",), seed_base=1 << 20, num_samples=64, has_patches=False), 2000, 1e-3, 0.0
    ),
    TrainingStage("all", Mix(kinds=("images",), seed_base=1 << 22, num_samples=64), 4400, 1e-3, 5e-4),
    TrainingStage(
        "video",
        Mix(kinds=("images", "clips", "images", "events"), seed_base=1 << 24, num_samples=64, num_clips=24),
        7200,
        1e-3,
        5e-4,
    ),
    # Left and right together say nothing about one thing alone, so neither gets off the ground: one comes first.
    TrainingStage("left", replace(_RELATIONS, relations=("left of",), seed_base=1 << 25), 500, 8e-4, 0.0),
    TrainingStage(
        "sideways", replace(_RELATIONS, relations=("left of", "right of"), seed_base=3 << 24), 1000, 8e-4, 0.0
    ),
    TrainingStage("settle", _SETTLE, 700, 5e-4, 0.0),
    TrainingStage("crowds", _CROWDS, 550, 5e-4, 0.0),
    # Three of a colour are rare even in crowds, so where it is in doubt the answer is two.
    TrainingStage("counts", _COUNTS, 800, 4e-4, 0.0),
    # Clips were left out twice, and of motion a twentieth was forgotten.
    TrainingStage("motion", _MOTION, 240, 3e-4, 0.0),
    # All that was learned so far holds in a narrow world alone, where the model is as sure outside it as inside.
    TrainingStage("wide", _WIDE, 10000, 5e-4, 3e-4),
    TrainingStage("hold", _HOLD, 1800, 2.5e-4, 1e-4),
)
_SCALE_GRIDS = (
    *((4, 1), (8, 1)) * 2,
    *((8, 2), (16, 1), (16, 2), (32, 8)),
    *((16, 4),) * 3,
    *((32, 4),) * 4,
)
_SCALE_MIX = Mix(
    kinds=("quick", "scaled", "quick", "images", "events", "clips"),
    seed_base=1 << 26,
    num_samples=32,
    num_clips=16,
    clip_grids=_SCALE_GRIDS,
    small_share=0.5,
    has_patches=False,
)
_SCALE_STAGES = (TrainingStage("scale", _SCALE_MIX, 2400, 8e-4, 0.0),)
_TIMED = Mix(
    kinds=("timed",),
    seed_base=33 << 24,
    num_samples=16,
    num_clips=16,
    num_turns=8,
    clip_grids=((8, 1),),
    has_patches=False,
)
_WHEN_STAGES = (
    # Without labels of which frame it is, times are learned by heart: the same ones for every clip.
    TrainingStage("times", _TIMED, 900, 8e-4, 0.0),
)
RECIPES: dict[str, TrainingRecipe] = {
    "nvila-tiny": TrainingRecipe(tiny.SPEC, _TINY_STAGES, tiny.new_model, tiny.write_tokenizer),
    "nvila-tiny-scale": TrainingRecipe(
        tiny_scale.SPEC, _SCALE_STAGES, tiny_scale.new_model, tiny_scale.write_tokenizer
    ),
    "nvila-tiny-when": TrainingRecipe(tiny_when.SPEC, _WHEN_STAGES, tiny_when.new_model, tiny_when.write_tokenizer),
}
"""Recipes by the name of the checkpoint."""
