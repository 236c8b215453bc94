"""Checkpoints to change, and what `nvila inspect` says of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.tools import cli

PROJECTOR = Path("mm_projector") / "model.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values))


def change_json(path: Path, **values: object) -> None:
    write_json(path, read_json(path) | values)


def change_tensors(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def load(root: Path) -> None:
    """Load as the node does, which must refuse what is told to be at fault."""
    checkpoint = open_checkpoint(root)
    checkpoint.weights()
    ChatTokenizer.from_folder(checkpoint.tokenizer_folder)


def inspect(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str]:
    """Return exit code and output, with lines joined as they were before they were fitted to a width."""
    code = cli.main(["inspect", *map(str, argv)])
    return code, " ".join(capsys.readouterr().out.split())


def inspect_json(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, Any]]:
    code = cli.main(["inspect", *map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out)
