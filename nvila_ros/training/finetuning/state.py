"""The saved state of a run, one file that is always whole, and the log of the losses up to it.

Tensors are saved whole and by name, so a run may be resumed with another number of ranks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvila_ros.errors import CheckpointError
from nvila_ros.files import atomic_file, write_errors
from nvila_ros.training.finetuning.learner import as_held, whole_if
from nvila_ros.training.states import load_tensors, save_tensors

STATE_FILE, LOSS_FILE = "state.pt", "losses.jsonl"


def save_state(
    path: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    left_out: Mapping[str, int],
    rates: Mapping[str, float],
    writes: bool,
) -> None:
    """Save the learned weights and the optimizer; all ranks gather, one writes.

    Args:
        path: the file to replace.
        step: steps that are done.
        model: that learns.
        optimizer: with `names` in its groups.
        left_out: samples left out so far, by reason.
        rates: of the last step.
        writes: whether this rank writes.

    Raises:
        ConfigError: it cannot be written; the one before is still there.
    """
    values = {name: whole_if(writes, value) for name, value in model.named_parameters() if value.requires_grad}
    moments = {
        name: {key: whole_if(writes, value) if isinstance(value, Tensor) else value for key, value in state.items()}
        for name, state in _states(optimizer).items()
    }
    if writes:
        save_tensors(
            path, {"step": step, "values": values, "moments": moments, "tally": dict(left_out), "rates": dict(rates)}
        )


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, int], dict[str, float]]:
    """Load the saved state if there is one; returns the steps done, the samples left out and the rates.

    Raises:
        CheckpointError: the file is damaged, or of another model.
    """
    if not path.is_file():
        return 0, {}, {}
    saved = load_tensors(path)
    try:
        parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        if parameters.keys() != saved["values"].keys():
            other = sorted(parameters.keys() ^ saved["values"].keys())
            raise KeyError(f"it does not share {other[0]}")
        for name, value in parameters.items():
            _put(value.data, saved["values"][name])
        for name, state in saved["moments"].items():
            parameter = parameters[name]
            optimizer.state[parameter] = {
                key: _as_moment(value, parameter, is_fused=bool(optimizer.defaults.get("fused")))
                for key, value in state.items()
            }
        return int(saved["step"]), dict(saved["tally"]), dict(saved["rates"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is of another run ({error}); remove it to begin anew") from error


def _put(into: Tensor, value: Tensor) -> None:
    if into.shape != value.shape:
        raise ValueError(f"shapes differ: {tuple(into.shape)} and {tuple(value.shape)}")
    into.copy_(as_held(value, into))


def _as_moment(value: Any, parameter: Tensor, *, is_fused: bool) -> Any:
    """Return what the optimizer saved as it holds it: moments as their parameter, counters on the CPU unless fused."""
    if not isinstance(value, Tensor) or (value.ndim == 0 and not is_fused):
        return value
    return as_held(value, parameter) if value.shape == parameter.shape else value.to(parameter.device)


def _states(optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {
        name: optimizer.state[parameter]
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        if parameter in optimizer.state
    }


class LossLog:
    """A line of JSON for each step; lines after the last saved state, which a killed run wrote, are removed."""

    def __init__(self, path: Path, done: int) -> None:
        self.path = path
        self.entries = [entry for entry in read_losses(path) if entry["step"] <= done]
        with atomic_file(path) as part:
            part.write_text("".join(map(_line, self.entries)), encoding="utf-8")

    def add(self, entry: dict[str, Any]) -> None:
        """Write a step's line.

        Raises:
            ConfigError: it cannot be written.
        """
        self.entries.append(entry)
        with write_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(_line(entry))


def read_losses(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a log that are whole, up to the first that is not."""
    entries: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    return entries


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
