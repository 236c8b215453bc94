"""The results of a run: a checkpoint in the layout of the one it began with, and the learned weights alone.

Every file is copied except for the weights that changed, each rounded to its dtype there. So whatever loads the one
loads the other, and weights that did not learn are equal bit by bit.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nvila_ros.errors import CheckpointError
from nvila_ros.files import sync_tree, write_errors
from nvila_ros.models.checkpoint import PICKLES, Checkpoint
from nvila_ros.training.finetuning.learner import whole, whole_if
from nvila_ros.training.finetuning.run import TuningRun
from nvila_ros.training.finetuning.tuning import tuned_weights
from nvila_ros.visual import known_world

RUN_FOLDER, ADAPTER_FOLDER, TUNED_FILE = "training", "adapter", "tuned.safetensors"
_PART = ".part"
_UNLIKE = ("README.md", known_world.FILE, RUN_FOLDER, ".git*", ".cache", *PICKLES)
"""What describes the other checkpoint, or is never read."""


def write_results(run: TuningRun, source: Checkpoint, out: Path) -> None:
    """Write the tuned checkpoint to `out`, and the learned weights to the run's folder; all ranks gather, one writes.

    Raises:
        ConfigError: something cannot be written; the run's state is still there.
        CheckpointError: a weight of the source is missing.
    """
    tuned: dict[str, Tensor] = {}
    for key, weight in tuned_weights(run.model, whole):
        if run.ranks.is_first:
            tuned[key] = weight
    _write_tuned(run)
    if run.ranks.is_first:
        write_checkpoint(source, tuned, out)
    run.ranks.wait()


def _write_tuned(run: TuningRun) -> None:
    """Write the adapter as peft does, and beside it everything else that learned, as it is kept."""
    learned: dict[str, Tensor] = {}
    for name, parameter in run.model.named_parameters():
        value = whole_if(run.ranks.is_first, parameter) if parameter.requires_grad else None
        if value is not None:
            learned[name] = value
    if not run.ranks.is_first:
        return
    factors = {name: value for name, value in learned.items() if ".lora_" in name}
    with write_errors(run.folder):
        if factors:
            from nvila_ros.training.finetuning.adapters import adapted, save_adapter

            (run.folder / ADAPTER_FOLDER).mkdir(parents=True, exist_ok=True)
            names = [name for name, _ in adapted(run.model)]
            save_adapter(run.folder / ADAPTER_FOLDER, factors, names, run.settings)
        others = {name: value.contiguous() for name, value in learned.items() if name not in factors}
        save_file(others, run.folder / TUNED_FILE, metadata={"format": "pt"})


def write_checkpoint(source: Checkpoint, tuned: Mapping[str, Tensor], out: Path) -> None:
    """Write a copy of a checkpoint with some weights replaced; without its config, the last file, it is none.

    Args:
        source: the checkpoint.
        tuned: what replaces its tensors, by `part.key`.
        out: may hold other files; folders and files of the checkpoint are replaced.

    Raises:
        ConfigError: it cannot be written.
        CheckpointError: the source has no tensor of a name.
    """
    unknown = sorted(tuned.keys() - source.tensors.keys())
    if unknown:
        raise CheckpointError(f"{source.path} has no tensor {unknown[0]}; tune the checkpoint that the run began with")
    staging = out / _PART
    with write_errors(out):
        shutil.rmtree(staging, ignore_errors=True)
        weights = {info.file for info in source.tensors.values()}
        ignored = shutil.ignore_patterns(*_UNLIKE, *(path.name for path in weights))
        shutil.copytree(source.path, staging, ignore=ignored, symlinks=False)
        for path in sorted(weights):
            _rewrite(source, path, tuned, staging / path.relative_to(source.path))
        sync_tree(staging)
        for path in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
            if (out / path.name).is_dir():
                shutil.rmtree(out / path.name)
            os.replace(path, out / path.name)
        staging.rmdir()


def _rewrite(source: Checkpoint, path: Path, tuned: Mapping[str, Tensor], to: Path) -> None:
    """Write one weight file; it is held as a whole, the others are not."""
    tensors: dict[str, Tensor] = {}
    keys = {info.name: key for key, info in source.tensors.items() if info.file == path}
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {"format": "pt"}
        for name, key in keys.items():
            tensor = file.get_tensor(name)
            tensors[name] = tuned[key].to(tensor.dtype).contiguous() if key in tuned else tensor
    save_file(tensors, to, metadata=metadata)
    to.chmod(0o644)  # written as readable by its owner alone
