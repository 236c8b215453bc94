"""The whole recipe of nvila-tiny-nav in small: walks, both stages, and a checkpoint that scores the ten actions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nvila_ros.prompt.navila import SENTENCES, short
from nvila_ros.serving.model import load
from nvila_ros.tools.cli import main
from nvila_ros.training.finetuning.results import RUN_FOLDER

pytestmark = pytest.mark.slow
RECIPE = ("--walks", "1", "--look-steps", "1", "--walk-steps", "1", "--batch", "2", "--workers", "1")


def test_the_recipe_makes_a_checkpoint_and_is_gone_on_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train-nav", "--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), *RECIPE]
    assert main(words) == 0
    weights = (tmp_path / "out" / "llm" / "model.safetensors").read_bytes()
    assert main(words) == 0

    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said == {"checkpoint": str(tmp_path / "out"), "walks": 1, "look_steps": 1, "walk_steps": 1}
    assert (tmp_path / "out" / "llm" / "model.safetensors").read_bytes() == weights
    assert not (tmp_path / "out" / RUN_FOLDER).exists()
    with load(str(tmp_path / "out")) as model:
        frames = [np.full((240, 320, 3), 40 * k, np.uint8) for k in range(5)]
        answer = model.ask(short("Go to the red ball."), frames, choices=SENTENCES)
    assert answer.choices == SENTENCES
    assert abs(sum(answer.probabilities) - 1) < 1e-3


def test_a_folder_with_something_else_is_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    assert main(["train-nav", "--out", str(tmp_path), "--work", str(tmp_path / "work"), *RECIPE]) == 2
    assert "no checkpoint" in capsys.readouterr().err
