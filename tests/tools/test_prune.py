"""`nvila prune`: what is kept, what is refused by name, and runs that are killed or shared and end the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("pyarrow")
from pyarrow import parquet

from nvila_ros.files import exclusive_lock
from nvila_ros.tools.cli import main
from nvila_ros.tools.prune_report import find_examples
from nvila_ros.training import score_run
from nvila_ros.training.conversations.planted import PlantedSpec, PlantedWorld, write_world
from tests.full_disk import largest_file
from tests.golden_cases import GOLDEN

pytestmark = pytest.mark.slow  # scores by two models

ROOT = Path(__file__).parents[2]
LARGE, SMALL = (str(GOLDEN / name / "ckpt") for name in ("lite", "video"))
NUM_SAMPLES = 11


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted world as files."""
    return write_world(PlantedWorld(PlantedSpec(num_samples=NUM_SAMPLES)), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run over it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert prune(data, "--out", out) == 0
    return out


def prune(*args: object) -> int:
    return main(["prune", *map(str, args), "--large", LARGE, "--small", SMALL, "--block", "2", "--device", "cpu"])


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def scores_of(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "scores").iterdir()) for row in parquet.read_table(path).to_pylist()]


def copy_data(data: Path, folder: Path) -> Path:
    shutil.copytree(data.parent, folder)
    return folder / data.name


def edit(path: Path, index: int, **fields: Any) -> None:
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[index] |= fields
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_kept_samples_are_the_highest_scores_in_the_order_of_the_input(data: Path, whole: Path) -> None:
    rows = scores_of(whole)
    lines = data.read_bytes().splitlines()

    assert [(row["source"], row["group"], row["index"]) for row in rows] == [
        ("world-0", "world-0", i) for i in range(NUM_SAMPLES)
    ]
    mean = [(row["log_large"] - row["log_small"]) / row["num_tokens"] for row in rows]
    best = sorted(range(NUM_SAMPLES), key=mean.__getitem__, reverse=True)[:6]
    kept = (whole / "kept" / "world-0.jsonl").read_bytes().splitlines()
    assert kept == [lines[i] for i in sorted(best)]
    assert cv2.imread(str(whole / "histogram.png")).std() > 0
    assert not [path for path in whole.rglob("*") if "part" in path.name]


def test_another_share_or_score_needs_no_new_scores(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "out")
    monkeypatch.setattr(score_run, "score_samples", None)  # calling it would fail

    assert prune(data, "--out", tmp_path / "out", "--keep", "0.2", "--score", "sum") == 0

    rows = scores_of(tmp_path / "out")
    best = sorted(rows, key=lambda row: row["log_large"] - row["log_small"], reverse=True)[:2]
    lines = data.read_bytes().splitlines()
    kept = (tmp_path / "out" / "kept" / "world-0.jsonl").read_bytes().splitlines()
    assert kept == [lines[i] for i in sorted(row["index"] for row in best)]
    assert told(capsys)["kept"] == 2


def test_killed_run_goes_on_and_ends_as_an_unbroken_one(data: Path, whole: Path, tmp_path: Path) -> None:
    out, score = tmp_path / "out", score_run.score_samples
    calls = iter(range(100))

    def fail_in_the_fourth_block(*args: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return score(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_run, "score_samples", fail_in_the_fourth_block)
        assert prune(data, "--out", out) == 130
    assert len(list((out / "scores").iterdir())) == 3
    assert prune(data, "--out", out) == 0

    assert scores_of(out) == scores_of(whole)
    assert (out / "kept" / "world-0.jsonl").read_bytes() == (whole / "kept" / "world-0.jsonl").read_bytes()


@pytest.mark.slow
def test_two_ranks_score_what_one_does(data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "nvila_ros.tools.cli", "prune", str(data), "--large", LARGE, "--small", SMALL]
    command += ["--block", "2", "--device", "cpu", "--out", str(out), "--json"]

    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=110
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kept"] == 6
    rows, expected = scores_of(out), scores_of(whole)
    assert [row["index"] for row in rows] == list(range(NUM_SAMPLES))
    for row, want in zip(rows, expected, strict=True):
        assert row["log_large"] == pytest.approx(want["log_large"], abs=1e-4)
        assert row["log_small"] == pytest.approx(want["log_small"], abs=1e-4)
    assert (out / "kept" / "world-0.jsonl").read_bytes() == (whole / "kept" / "world-0.jsonl").read_bytes()


def test_each_sub_dataset_keeps_its_own_share(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prune(data, "--out", tmp_path / "out", "--by", "plant") == 0

    groups = told(capsys)["groups"]
    plants = [json.loads(line)["plant"] for line in data.read_text().splitlines()]
    kept = [json.loads(line) for line in (tmp_path / "out" / "kept" / "world-0.jsonl").read_text().splitlines()]
    for plant in set(plants):
        num_kept = sum(record["plant"] == plant for record in kept)
        assert abs(num_kept - 0.5 * plants.count(plant)) <= 1
        assert groups[plant]["kept"] == num_kept
    assert [record["id"] for record in kept] == sorted(record["id"] for record in kept)


def test_array_becomes_lines_and_several_files_stay_apart(data: Path, tmp_path: Path) -> None:
    lines = copy_data(data, tmp_path / "data")
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    (lines.parent / "array.json").write_text(json.dumps(records, indent=2))

    assert prune(lines.parent, "--out", tmp_path / "out") == 0

    kept = {name: (tmp_path / "out" / "kept" / f"{name}.jsonl").read_text() for name in ("array", "world-0")}
    assert [json.loads(line) for line in kept["array"].splitlines()] == [
        json.loads(line) for line in kept["world-0"].splitlines()
    ]


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


def test_scores_are_of_the_media_that_they_were_begun_with(
    data: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path / "out")

    assert prune(data, "--out", tmp_path / "out", "--media", tmp_path) == 2
    assert "holds a run with another data" in capsys.readouterr().err


def test_files_in_another_order_are_another_run(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = copy_data(data, tmp_path / "data")
    second = shutil.copyfile(first, first.with_name("second.jsonl"))
    assert prune(first, second, "--out", tmp_path / "out") == 0

    assert prune(second, first, "--out", tmp_path / "out") == 2
    assert "holds a run with another data" in capsys.readouterr().err


def test_what_a_killed_run_left_half_is_removed(data: Path, tmp_path: Path) -> None:
    half = tmp_path / "out" / "scores" / ".part-7-block"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")

    with exclusive_lock(tmp_path / "out"):
        assert not half.exists()


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


def test_examples_stand_for_their_kind(whole: Path) -> None:
    rows = scores_of(whole)
    columns = {name: np.array([row[name] for row in rows]) for name in ("log_large", "log_small", "num_tokens", "key")}
    zeros = np.zeros(len(rows), int)
    scores = score_run.Scores(
        sources=("world-0",),
        groups=("world-0",),
        faults=(),
        source_N=zeros,
        index_N=np.arange(len(rows)),
        group_N=zeros,
        fault_N=zeros - 1,
        key_N=columns["key"],
        log_large_N=columns["log_large"],
        log_small_N=columns["log_small"],
        num_tokens_N=columns["num_tokens"],
    )
    delta = scores.delta("mean")

    found = list(find_examples(scores, delta, 0))

    assert [kind for kind, _ in found] == ["too easy"] * 2 + ["wrong"] * 2 + ["helpful"] * 2
    numbers = [n for _, n in found]
    assert numbers[2:4] == np.argsort(delta)[:2].tolist()
    assert numbers[4:] == np.argsort(-delta)[:2].tolist()
    small = columns["log_small"] / columns["num_tokens"]
    assert all(small[n] >= np.median(small) for n in numbers[:2])
