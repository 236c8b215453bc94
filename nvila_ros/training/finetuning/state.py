"""What a run goes on from: one file that is whole or the one before it, and the losses of the steps up to it.

Tensors are saved whole and by name, so a run may go on with other ranks than it began with.
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
    tally: Mapping[str, int],
    rates: Mapping[str, float],
    writes: bool,
) -> None:
    """Save what has been learned; all ranks gather it, one writes.

    Args:
        path: the file to replace.
        step: steps that are done.
        model: what learns.
        optimizer: with `names` in its groups.
        tally: samples left out so far, by reason.
        rates: that the last step was taken by.
        writes: whether this rank does.

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
            path, {"step": step, "values": values, "moments": moments, "tally": dict(tally), "rates": dict(rates)}
        )


def load_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, int], dict[str, float]]:
    """Take up what was saved, if it was; returns the steps done, the tally and the rates.

    Raises:
        CheckpointError: the file is damaged, or of another model.
    """
    if not path.is_file():
        return 0, {}, {}
    told = load_tensors(path)
    try:
        parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        if parameters.keys() != told["values"].keys():
            other = sorted(parameters.keys() ^ told["values"].keys())
            raise KeyError(f"it does not share {other[0]}")
        for name, value in parameters.items():
            _put(value.data, told["values"][name])
        for name, state in told["moments"].items():
            parameter = parameters[name]
            optimizer.state[parameter] = {
                key: _as_moment(value, parameter, is_fused=bool(optimizer.defaults.get("fused")))
                for key, value in state.items()
            }
        return int(told["step"]), dict(told["tally"]), dict(told["rates"])
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
    """A line of JSON for each step; what a killed run wrote behind its last state is forgotten."""

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
