"""`nvila finetune`: what is refused by name, and what a refusal leaves."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from nvila_ros.tools import finetune as finetune_tool
from nvila_ros.tools.cli import main
from nvila_ros.training.finetuning import run as run_room
from tests.full_disk import largest_file
from tests.tools.finetuning.runs import CKPT, SHORT, entries, finetune, same_weights, told

pytestmark = pytest.mark.slow  # trains


def copy_data(data: Path, folder: Path) -> Path:
    shutil.copytree(data.parent, folder)
    return folder / data.name


@contextmanager
def run_room_alone(out: Path) -> Iterator[None]:
    from nvila_ros.files import exclusive_lock

    with exclusive_lock(out / "training"):
        yield


def test_bad_samples_are_refused_by_name_or_left_out_and_counted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_data(data, tmp_path / "data")
    (path.parent / "world-0" / "6.png").write_bytes(b"no picture")
    (path.parent / "world-0" / "3.png").unlink()

    assert finetune(path, "--out", tmp_path / "out") == 2
    assert re.search(r"world-0\.jsonl, record (4: no image at|7: .*6\.png)", capsys.readouterr().err)

    assert finetune(path, "--out", tmp_path / "out", "--skip-bad", "--epochs", 1) == 0
    assert told(capsys)["left_out"] == {"missing_media": 1, "unreadable_media": 1}


def test_step_without_a_readable_sample_learns_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_data(data, tmp_path / "data")
    for image in (path.parent / "world-0").iterdir():
        image.unlink()

    assert finetune(path, "--out", tmp_path / "out", "--skip-bad", "--steps", 2) == 0

    assert told(capsys)["loss"] is None
    assert [entry["loss"] for entry in entries(tmp_path / "out")] == [None, None]
    assert same_weights(tmp_path / "out", Path(CKPT))


def test_full_disk_leaves_the_state_before(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, save = tmp_path / "out", run_room.save_state

    def fill_the_disk(path: Path, step: int, *args: Any, **named: Any) -> None:
        with largest_file(100_000 if step == 6 else 1 << 30):
            save(path, step, *args, **named)

    with monkeypatch.context() as patch:
        patch.setattr(run_room, "save_state", fill_the_disk)
        assert finetune(data, "--out", out, "--steps", 8, "--save-every", 3) == 2
    assert re.search(r"state\.pt cannot be written: .*; make room, then run again", capsys.readouterr().err)
    assert torch.load(out / "training" / "state.pt", weights_only=True)["step"] == 3
    assert not [path for path in out.rglob("*") if "part" in path.name]

    assert finetune(data, "--out", out, "--steps", 8, "--save-every", 3) == 0
    assert entries(out) == entries(whole)
    assert same_weights(out, whole)


def test_loss_that_is_no_number_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(data, "--out", tmp_path / "out", "--steps", 8, "--lr", "1e30", "--clip", "1e30") == 2

    assert re.search(
        r"the (loss|norm of the gradients) is (nan|inf) at step \d; nothing was saved", capsys.readouterr().err
    )
    assert not (tmp_path / "out" / "config.json").exists()


def test_folder_of_another_run_or_thing_is_refused(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("do not lose me")

    assert finetune(data, "--out", tmp_path / "full") == 2
    assert "holds something that is no run of finetune; choose another" in capsys.readouterr().err
    assert finetune(data, "--out", whole, "--steps", 8, "--seed", 5) == 2
    assert "holds a run with another seed, 0 and not 5" in capsys.readouterr().err


def test_results_within_the_checkpoint_are_refused(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "ckpt")

    assert finetune(data, "--out", tmp_path / "ckpt" / "tuned", "--checkpoint", tmp_path / "ckpt") == 2

    assert "lies in the checkpoint that is tuned" in capsys.readouterr().err
    assert not (tmp_path / "ckpt" / "tuned").exists()


def test_full_disk_at_the_end_keeps_the_state(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = finetune_tool.write_results

    def fill_the_disk(*args: Any) -> None:
        with largest_file(100_000):
            write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(finetune_tool, "write_results", fill_the_disk)
        assert finetune(data, "--out", tmp_path / "out", "--steps", 1) == 2
    assert re.search(r"cannot be written: .*; make room, then run again", capsys.readouterr().err)

    assert finetune(data, "--out", tmp_path / "out", "--steps", 1) == 0


def test_two_runs_never_share_a_folder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    with run_room_alone(out):
        assert finetune(data, "--out", out) == 2

    assert "another run is at work" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--sweep-ratio", "1,5"), "needs --held-out samples to judge by"),
        (("--sweep-ratio", "0"), "expected a number > 0, got '0'"),
        (("--lr", "nan"), "expected a number > 0, got 'nan'"),
        (("--warmup", "1"), "expected a share in [0, 1), got '1'"),
        (("--precision", "fp8", "--llm", "lora"), "fp8 is for the linear maps of a language model"),
        (("--tower", "half"), "invalid choice: 'half'"),
        (("--steps", "2", "--epochs", "2"), "not allowed with argument"),
    ],
)
def test_bad_options_are_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    with suppress(SystemExit):  # raised by argparse for what it refuses itself
        assert main(["finetune", str(data), *SHORT, "--out", str(tmp_path / "out"), *args]) == 2

    assert message in capsys.readouterr().err
