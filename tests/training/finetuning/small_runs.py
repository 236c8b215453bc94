"""Runs of a few steps over a planted world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.conversations.encoding import EncodedSample, encode_sample
from nvila_ros.training.conversations.planted import PlantedSpec, PlantedWorld
from nvila_ros.training.conversations.samples import Sample
from nvila_ros.training.finetuning.run import TuningData, TuningRun, open_run
from nvila_ros.training.finetuning.settings import Settings
from nvila_ros.training.ranks import Ranks

WORLD = PlantedWorld(PlantedSpec(num_samples=12))
CPU = torch.device("cpu")
FLAT = {"lora_rank": 4, "group_size": 32, "precision": "fp32", "batch": 4, "lr": 1e-2}


def new_run(checkpoint: Checkpoint, folder: Path, **settings: Any) -> TuningRun:
    told = Settings(**{**FLAT, "num_steps": 2, **settings})
    return open_run(checkpoint, TuningData([WORLD], [WORLD]), told, folder, Ranks(), CPU)


def learned_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def encode(checkpoint: Checkpoint, sample: Sample) -> EncodedSample:
    return encode_sample(checkpoint.spec, ChatTokenizer.from_folder(checkpoint.tokenizer_folder), sample)
