"""Short runs of `nvila finetune`, in this process or in their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.tools.cli import main
from nvila_ros.training.finetuning.state import read_losses
from tests.golden_cases import GOLDEN

ROOT = Path(__file__).parents[3]
CKPT = str(GOLDEN / "lite" / "ckpt")
SHORT = ["--checkpoint", CKPT, "--device", "cpu", "--llm", "full", "--tower", "full", "--lr", "2e-4", "--batch", "4"]
TIMING = {"s"}  # what differs between two runs that are the same


def finetune(*args: object) -> int:
    return main(["finetune", *SHORT, *map(str, args)])


def start(*args: object, ranks: int = 1) -> subprocess.Popen[str]:
    """Start a run in a process of its own, or under torchrun in several."""
    command = [sys.executable, "-m"]
    if ranks > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    command += ["nvila_ros.tools.cli", "finetune", *SHORT, *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def entries(out: Path) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in entry.items() if key not in TIMING}
        for entry in read_losses(out / "training" / "losses.jsonl")
    ]


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def same_weights(first: Path, second: Path) -> bool:
    one, two = (open_checkpoint(path).load() for path in (first, second))
    return one.keys() == two.keys() and all((one[key] == two[key]).all() for key in one)
