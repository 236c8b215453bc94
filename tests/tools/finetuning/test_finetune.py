"""`nvila finetune`: runs that are killed, shared or tuned again, and what they leave."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.serving.pipeline import load_model
from nvila_ros.training.finetuning import run as run_room
from tests.tools.finetuning.runs import CKPT, entries, finetune, same_weights, start, told

pytestmark = pytest.mark.slow  # trains


def wait_for_step(process: subprocess.Popen[str], out: Path, step: int) -> None:
    deadline_s = time.monotonic() + 180
    while len(entries(out)) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s, "the run takes no steps"
        time.sleep(0.005)


def child_of(process: subprocess.Popen[str], rank: int) -> int:
    """Return the process that torchrun started for a rank."""
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = re.search(r"^PPid:\s+(\d+)", (path / "status").read_text(), re.M)
            if parent and int(parent[1]) == process.pid:
                variables = (path / "environ").read_bytes().split(b"\0")
                if f"RANK={rank}".encode() in variables:
                    return int(path.name)
    raise AssertionError(f"no process of rank {rank}")


def test_run_leaves_a_checkpoint_its_losses_and_a_picture(whole: Path) -> None:
    found = entries(whole)

    assert [entry["step"] for entry in found] == list(range(1, 9))
    assert found[-1]["loss"] < found[0]["loss"]
    assert cv2.imread(str(whole / "training" / "loss.png")).std() > 0
    assert load_model(str(whole), backend="onnxruntime")
    assert not [path for path in whole.rglob("*") if "part" in path.name]
    assert not same_weights(whole, Path(CKPT))


def test_finished_run_is_told_again_and_changes_nothing(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "out")

    assert finetune(data, "--out", tmp_path / "out", "--steps", 8, "--save-every", 3, "--held-out", data) == 0

    answer = told(capsys)
    assert answer["steps"] == 8
    assert answer["held_out_loss"] < entries(whole)[0]["loss"]
    assert same_weights(tmp_path / "out", whole)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("step", [2, 4])
def test_run_that_was_killed_goes_on_to_the_same_bits(data: Path, unbroken: Path, tmp_path: Path, step: int) -> None:
    out = tmp_path / "out"
    process = start(data, "--out", out, "--steps", 8, "--save-every", 3)
    wait_for_step(process, out, step)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=90)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "config.json").exists()

    second = start(data, "--out", out, "--steps", 8, "--save-every", 3)
    _, err = second.communicate(timeout=180)

    assert second.returncode == 0, err
    saved = torch.load(out / "training" / "state.pt", weights_only=True)
    assert saved["step"] == 8
    if step >= 4:
        assert re.search(r"goes on after step (3|6)", err)
    assert entries(out) == entries(unbroken)
    assert same_weights(out, unbroken)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("shard", "ways"),
    [([], []), (["--shard"], []), (["--shard"], ["--tower", "layernorm", "--llm", "lora"])],
    ids=["ddp", "shard", "shard-lora"],
)
def test_two_processes_take_the_steps_of_one(
    data: Path, whole: Path, tmp_path: Path, shard: list[str], ways: list[str]
) -> None:
    """Rows of the planted world show something; that of a rank which has none left shows nothing."""
    out = tmp_path / "out"
    if ways:
        whole = tmp_path / "whole"
        assert finetune(data, "--out", whole, "--steps", 8, "--save-every", 3, *ways) == 0
    a_row_each = ("--row-tokens", 1)  # so that gradients gather over rows, of which the ranks have not equally many
    process = start(data, "--out", out, "--steps", 8, "--save-every", 3, "--json", *a_row_each, *shard, *ways, ranks=2)
    stdout, err = process.communicate(timeout=180)

    assert process.returncode == 0, err
    assert json.loads(stdout.splitlines()[-1])["steps"] == 8
    for found, wanted in zip(entries(out), entries(whole), strict=True):
        assert found["loss"] == pytest.approx(wanted["loss"], abs=1e-4)
        assert found["tokens"] == wanted["tokens"]
        assert found["norm"] == pytest.approx(wanted["norm"], rel=1e-3)
    one, two = (open_checkpoint(path).load() for path in (out, whole))
    # Weights are rounded to bfloat16, so a last bit may differ.
    assert max(abs(one[key] - two[key]).max() for key in one) < 2e-2


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("shard", [[], ["--shard"]])
def test_killed_rank_ends_the_run_which_loses_the_steps_since_its_state(
    data: Path, whole: Path, tmp_path: Path, shard: list[str]
) -> None:
    out = tmp_path / "out"
    args = [data, "--out", out, "--steps", 8, "--save-every", 3]
    process = start(*args, *shard, ranks=2)
    wait_for_step(process, out, 4)
    os.kill(child_of(process, 1), signal.SIGKILL)
    _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert re.search(r"rank +: 1 .*\n.*exitcode +: -9 ", err)  # what torchrun says of the one
    assert "[rank0]: Traceback" not in err  # and the other ends without a crash
    assert torch.load(out / "training" / "state.pt", weights_only=True)["step"] in (3, 6)

    if shard:
        second = start(*args, *shard, ranks=2)
        _, err = second.communicate(timeout=180)
        assert second.returncode == 0, err
    else:
        assert finetune(*args) == 0  # with one process, if that is what is left

    losses = [entry["loss"] for entry in entries(out)]
    assert losses == pytest.approx([entry["loss"] for entry in entries(whole)], abs=1e-4)


def test_rates_may_change_when_a_run_goes_on_and_not_once_it_has_ended(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, save = (data, "--out", tmp_path / "out", "--steps", 2, "--save-every", 1), run_room.save_state

    def stop_behind(*args: Any, **named: Any) -> None:
        save(*args, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_room, "save_state", stop_behind)
        assert finetune(*run) == 130
    assert finetune(*run, "--lr", "1e-5") == 0
    assert [entry["lr"] for entry in entries(tmp_path / "out")] == [1e-4, 1e-5]
    capsys.readouterr()

    assert finetune(*run, "--lr", "5e-5") == 2
    assert "holds a run that is finished, with rates {" in capsys.readouterr().err


def test_tuned_checkpoint_is_tuned_again_without_harm(data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    first = {path.name: path.read_bytes() for path in (whole / "training").iterdir() if path.is_file()}

    assert finetune(data, "--out", out, "--steps", 1, "--checkpoint", whole) == 0

    assert len(entries(out)) == 1
    assert torch.load(out / "training" / "state.pt", weights_only=True)["step"] == 1
    assert {path.name: path.read_bytes() for path in (whole / "training").iterdir() if path.is_file()} == first


def test_sweep_tells_the_ratio_with_the_lowest_held_out_loss(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [data, "--out", tmp_path / "out", "--held-out", data, "--steps", 2, "--sweep-ratio", "1,50"]
    assert finetune(*args) == 0

    answer = told(capsys)
    assert [row["ratio"] for row in answer["sweep"]] == [1, 50]
    best = min(answer["sweep"], key=lambda row: row["held_out_loss"])
    assert answer["best_ratio"] == best["ratio"]
    assert answer["sweep"][0]["held_out_loss"] != answer["sweep"][1]["held_out_loss"]
    assert not (tmp_path / "out" / "config.json").exists()
