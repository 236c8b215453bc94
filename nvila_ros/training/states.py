"""Files of tensors that a run goes on from."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from nvila_ros.errors import CheckpointError
from nvila_ros.files import atomic_file


def save_tensors(path: Path, state: dict[str, Any]) -> None:
    """Save a dictionary of tensors and plain values as a file that is whole, or leave the one before it.

    Raises:
        ConfigError: it cannot be written.
    """
    with atomic_file(path) as part, part.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's writer hides the system's error behind its own
            raise _system_error(error) from error


def _system_error(error: RuntimeError) -> OSError:
    cause = error.__context__
    return cause if isinstance(cause, OSError) else OSError(str(error).splitlines()[0])


def load_tensors(path: Path) -> dict[str, Any]:
    """Return what `save_tensors` saved, on the CPU.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, OSError, UnpicklingError) as error:
        reason = next(iter(str(error).splitlines()), "it ends too early")
        raise CheckpointError(f"{path} is damaged ({reason}); remove it to begin anew") from error
