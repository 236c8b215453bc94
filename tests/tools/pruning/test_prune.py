"""`nvila prune`: what is kept, and runs that are killed or shared and end the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nvila_ros.files import exclusive_lock
from nvila_ros.tools.prune_report import find_examples
from nvila_ros.training import score_run
from tests.tools.pruning.pruning_runs import LARGE, NUM_SAMPLES, SMALL, copy_data, prune, scores_of, told

pytestmark = pytest.mark.slow  # scores by two models

ROOT = Path(__file__).parents[3]


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
