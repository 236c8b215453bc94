"""`nvila prune`: what is refused by name, and what a refusal leaves."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from nvila_ros.files import exclusive_lock
from nvila_ros.tools.cli import main
from nvila_ros.training import score_run
from tests.full_disk import largest_file
from tests.tools.pruning.pruning_runs import LARGE, NUM_SAMPLES, copy_data, prune, scores_of, told

pytestmark = pytest.mark.slow  # scores by two models


def edit(path: Path, index: int, **fields: Any) -> None:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[index] |= fields
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_missing_media_are_refused_by_name_or_left_out_and_counted(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_data(data, tmp_path / "data")
    edit(path, 4, image="none.png")
    (path.parent / "world-0" / "6.png").write_bytes(b"no picture")

    assert prune(path, "--out", tmp_path / "strict") == 2
    assert re.search(r"world-0\.jsonl, record 5: no image at .*none\.png; check", capsys.readouterr().err)

    assert prune(path, "--out", tmp_path / "out", "--skip-bad") == 0
    counts = told(capsys)
    assert counts["left_out"] == {"missing_media": 1, "unreadable_media": 1}
    assert counts["groups"]["world-0"]["scored"] == NUM_SAMPLES - 2
    assert [row["index"] for row in scores_of(tmp_path / "out") if row["fault"]] == [4, 6]


def test_sub_dataset_must_not_be_or_become_empty(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_data(data, tmp_path / "data")
    (tmp_path / "empty.jsonl").write_text("\n")
    shutil.rmtree(path.parent / "world-0")

    assert prune(tmp_path / "empty.jsonl", "--out", tmp_path / "a") == 2
    assert "empty.jsonl holds no sample" in capsys.readouterr().err
    assert prune(path, "--out", tmp_path / "b", "--skip-bad") == 2
    assert re.search("no sample of world-0 could be scored, .* left out as missing_media", capsys.readouterr().err)


def test_sub_dataset_within_a_file_must_not_become_empty(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_data(data, tmp_path / "data")
    edit(path, 4, image="none.png", task="lost")
    for index in {*range(NUM_SAMPLES)} - {4}:
        edit(path, index, task="kept")

    assert prune(path, "--out", tmp_path / "out", "--skip-bad", "--by", "task") == 2
    assert "no sample of lost could be scored" in capsys.readouterr().err


def test_strict_run_does_not_take_what_a_lenient_one_left_out(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_data(data, tmp_path / "data")
    edit(path, 4, image="none.png")
    assert prune(path, "--out", tmp_path / "out", "--skip-bad") == 0

    assert prune(path, "--out", tmp_path / "out") == 2
    assert "1 samples were left out by an earlier run with --skip-bad (missing_media)" in capsys.readouterr().err


def test_two_runs_never_share_a_folder(data: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with exclusive_lock(whole):
        assert prune(data, "--out", whole) == 2

    assert "another run is at work in" in capsys.readouterr().err


def test_full_disk_leaves_what_was_finished(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, score = tmp_path / "out", score_run.ScoreFolder.write

    def fill_the_disk(folder: score_run.ScoreFolder, block: int, entries: Any) -> None:
        with largest_file(100 if block == 2 else 1 << 20):
            score(folder, block, entries)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_run.ScoreFolder, "write", fill_the_disk)
        assert prune(data, "--out", out) == 2
    assert "00000002.parquet cannot be written: File too large; make room" in capsys.readouterr().err
    assert sorted(path.name for path in (out / "scores").iterdir()) == ["00000000.parquet", "00000001.parquet"]
    assert prune(data, "--out", out) == 0


def test_folder_of_another_run_is_refused(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy_data(data, tmp_path / "data")
    edit(path, 0, id="changed")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("do not lose me")

    assert prune(path, "--out", whole) == 2
    assert "holds a run with another data, " in capsys.readouterr().err
    assert prune(data, "--out", whole, "--dtype", "bfloat16") == 2
    assert "run with another dtype" in capsys.readouterr().err
    assert prune(data, "--out", tmp_path / "full") == 2
    assert "holds something that is no run of scores" in capsys.readouterr().err


def test_damaged_scores_are_told(data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "scores" / "00000003.parquet").write_bytes(b"PAR1")

    assert prune(data, "--out", tmp_path / "out") == 2
    assert re.search(r"00000003\.parquet is missing or damaged .* remove it", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--keep", "0"), "expected a share in (0, 1], got '0'"),
        (("--keep", "half"), "got 'half'"),
        (("--by", "taste"), "field 'taste' must name the sub-dataset"),
        (("--score", "max"), "invalid choice: 'max'"),
    ],
)
def test_bad_options_are_told(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], message: str
) -> None:
    with suppress(SystemExit):  # raised by argparse for what it refuses itself
        assert prune(data, "--out", tmp_path / "out", *args) == 2

    assert message in capsys.readouterr().err


def test_files_of_one_name_are_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = copy_data(data, tmp_path / "data")

    assert prune(data, other, "--out", tmp_path / "out") == 2
    assert "got ['world-0'] more than once" in capsys.readouterr().err


def test_checkpoints_of_different_tokenizers_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["prune", str(data), "--large", LARGE, "--small", "nvila-tiny", "--out", str(tmp_path / "out")]

    assert main(args) == 2
    assert "must have one tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
