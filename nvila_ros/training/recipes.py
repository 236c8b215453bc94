"""What the embedded checkpoints were trained with: one recipe each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import ModelSpec
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training import tiny, tiny_scale
from nvila_ros.training.batches import Batches, Mix
from nvila_ros.training.scale_batches import ScaleBatches


@dataclass(frozen=True, slots=True)
class Stage:
    """One leg of the training.

    Attributes:
        tower_lr: peak learning rate of the tower, 0 to leave it as it is; the others' is `lr`.
        is_bf16: multiply in bf16, with weights and sums in fp32; half as long where the processor can.
    """

    name: str
    mix: Mix
    num_steps: int
    lr: float
    tower_lr: float
    is_bf16: bool = False


@dataclass(frozen=True, slots=True)
class Recipe:
    """One embedded checkpoint.

    Attributes:
        new_model: returns what the training starts from, by seed.
        write_tokenizer: writes the tokenizer's files to a folder.
        make_data: returns the batches of a stage.
    """

    spec: ModelSpec
    stages: tuple[Stage, ...]
    new_model: Callable[[int], Nvila]
    write_tokenizer: Callable[[Path], None]
    make_data: Callable[[Mix, ChatTokenizer, ModelSpec], Dataset]


_TINY_STAGES = (
    Stage("tower", Mix(("dense",), 0, 64), 1500, 1e-3, 1e-3),
    Stage("images", Mix(("images",), 1 << 20, 64), 1450, 1e-3, 7e-4),
    Stage("clips", Mix(("images", "clips"), 1 << 24, 64, 24, num_turns=6), 1000, 8e-4, 5e-4),
)
_SCALE_MIX = Mix(("events", "scaled", "events", "images", "events", "clips"), 1 << 26, 32, 16, num_turns=4)
_EVENT_MIX = Mix(("events", "events", "scaled", "events", "images", "events", "clips"), 1 << 27, 32, 16, num_turns=4)
_SCALE_STAGES = (
    Stage("scale", _SCALE_MIX, 1400, 8e-4, 0.0, is_bf16=True),
    Stage("events", _EVENT_MIX, 1400, 7e-4, 0.0, is_bf16=True),
)
RECIPES: dict[str, Recipe] = {
    "nvila-tiny": Recipe(tiny.SPEC, _TINY_STAGES, tiny.new_model, tiny.write_tokenizer, Batches),
    "nvila-tiny-scale": Recipe(
        tiny_scale.SPEC, _SCALE_STAGES, tiny_scale.new_model, tiny_scale.write_tokenizer, ScaleBatches
    ),
}
"""Recipes by the name of the checkpoint."""
