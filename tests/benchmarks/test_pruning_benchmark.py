"""The benchmark of DeltaLoss: its short ways are held against the long ones, and what is there is not run again."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pyarrow")
import torch

from benchmarks import prune
from benchmarks.pruning import choosing, drawn, learning, report
from nvila_ros.errors import ConfigError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.serving.pipeline import load_model
from nvila_ros.tools.suite_scores import ask_case
from nvila_ros.training.conversations.planted import PLANTS, PlantedSpec, PlantedWorld
from nvila_ros.training.pruning import Scorer, content_key
from nvila_ros.world.questions import ANSWERS, EvalCase, is_correct

pytestmark = pytest.mark.slow  # trains

LARGE = "nvila-tiny"
SMALL = ["--seeds", "1", "--samples", "12", "--base-samples", "4", "--questions", "1", "--easy", "color"]


@given(clusters=st.lists(st.integers(0, 5), min_size=1, max_size=40), seed=st.integers(0, 9), data=st.data())
def test_every_cluster_gives_as_many_or_all_it_has(clusters: list[int], seed: int, data: st.DataObject) -> None:
    num_kept = data.draw(st.integers(1, len(clusters)))
    of = np.array(clusters)

    chosen = choosing.spread(of, num_kept, np.random.default_rng(seed))

    assert len(set(chosen.tolist())) == num_kept
    given_by = {cluster: int((of[chosen] == cluster).sum()) for cluster in set(clusters)}
    most = max(given_by.values())
    assert all(num >= most - 1 or num == clusters.count(cluster) for cluster, num in given_by.items())


def draw(source: drawn.Planted | drawn.Cases, folder: Path, model: prune.Nvila) -> drawn.DrawnSet:
    """Draw a set in shards of `drawn.SHARD`."""
    for first, end in drawn.shards_of(source):
        drawn.draw_shard(source, first, end, folder, LARGE)
    drawn.finish(source, folder, model)
    return drawn.open_set(folder)


def test_drawn_samples_score_as_those_of_the_data_set_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "SHARD", 5)
    monkeypatch.setattr(learning, "AT_ONCE", 3)
    world = PlantedWorld(PlantedSpec(num_samples=12, seed=7, num_turns=3))
    scorer = Scorer(open_checkpoint(find_checkpoint(LARGE)))

    known = draw(drawn.Planted(world), tmp_path / "set", scorer.model)

    expected = scorer.log_probs([scorer.encode(world.read(i)) for i in range(12)], row_tokens=512)
    np.testing.assert_allclose(learning.log_probs(scorer.model, known), expected, rtol=2e-3, atol=5e-3)
    assert [PLANTS[number] for number in known.groups] == [world.plant(i) for i in range(12)]
    assert known.keys.tolist() == [content_key(world.line(i)) for i in range(12)]
    assert not (tmp_path / "set.shards").exists()


def test_best_half_is_of_each_subset_or_of_all_as_if_they_were_one(tmp_path: Path) -> None:
    model = prune.load(find_checkpoint(LARGE), "cpu")
    plan = PlantedSpec(
        num_samples=40, shares=(0.4, 0.2, 0.4), easy_kinds=("color",), helpful_kinds=("count",), is_split=True
    )
    known = draw(drawn.Planted(PlantedWorld(plan)), tmp_path / "set", model)
    scores = np.random.default_rng(1).normal(size=40) + 10 * known.subsets  # each of the second is above the first

    kept = {
        method: choosing.select(method, known, scores, model, keep=0.5, seed=0)
        for method in ("deltaloss", "random", "mixed")
    }

    assert kept["mixed"].sum() == 20
    assert np.sort(scores)[20] <= scores[kept["mixed"]].min()
    for subset in (0, 1):
        mine = known.subsets == subset
        half = (int(mine.sum()) + 1) // 2
        assert kept["deltaloss"][mine].sum() == kept["random"][mine].sum() == half
        assert scores[mine & kept["deltaloss"]].min() > scores[mine & ~kept["deltaloss"]].max()
    assert (kept["random"] != kept["deltaloss"]).any()
    told = report.kept_shares(known, kept["deltaloss"], plan.kinds)
    is_wrong = known.groups == PLANTS.index("wrong")
    assert told["kept_wrong"] == kept["deltaloss"][is_wrong].mean()
    assert told["kept_wrong_count"] == kept["deltaloss"][is_wrong & (known.subsets == 1)].mean()
    assert "kept_easy_count" not in told


@dataclass(frozen=True, slots=True)
class HalfFalse(drawn.Cases):
    """Cases of which every other one has a false answer."""

    def case(self, index: int) -> EvalCase:
        case = drawn.Cases.case(self, index)
        others = [answer for answer in ANSWERS[case.question.kind] if answer != case.question.answer]
        return replace(case, question=replace(case.question, answer=others[index % len(others)])) if index % 2 else case


def test_one_reading_tells_what_the_model_would_answer(tmp_path: Path) -> None:
    cases = HalfFalse(("color", "shape", "count", "exist", "where"), 4)
    model = prune.load(find_checkpoint(LARGE), "cpu")

    found = learning.is_right(model, draw(cases, tmp_path / "cases", model))

    vlm = load_model(LARGE, threads=1)
    said = [ask_case(vlm, cases.case(i), str(i)).text for i in range(len(cases))]
    expected = [is_correct(cases.case(i).question, text) for i, text in enumerate(said)]
    assert found.tolist() == expected
    assert set(expected) == {True, False}


def test_learning_touches_all_but_the_tower_and_makes_answers_likelier(tmp_path: Path) -> None:
    model = prune.load(find_checkpoint(LARGE), "cpu")
    world = PlantedWorld(PlantedSpec(num_samples=16, seed=3, shares=(0, 1, 0)))
    known = draw(drawn.Planted(world), tmp_path / "set", model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    logs = learning.log_probs(model, known)

    learning.learn(model, known, np.arange(16), epochs=2, batch=4, peak_lr=1e-3, name="wrong answers")

    assert learning.log_probs(model, known).sum() > logs.sum() + 1
    kept = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert kept == {name for name in before if name.startswith("vision_tower.")}


def run(monkeypatch: pytest.MonkeyPatch, work: Path, *more: str) -> int:
    """Run the benchmark in small."""
    monkeypatch.setattr(sys, "argv", ["prune", "--work", str(work), *SMALL, *more])
    return prune.main()


@pytest.mark.slow
def test_benchmark_runs_once_and_then_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path / "work", "--processes", "1", "--figure", str(tmp_path / "all.png")) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(prune, "learn", None)  # calling it would fail
    monkeypatch.setattr(prune, "select", None)
    monkeypatch.setattr(prune, "draw_shard", None)
    assert run(monkeypatch, tmp_path / "work") == 0

    assert capsys.readouterr().out.splitlines()[-1] == first.splitlines()[-1]
    assert (tmp_path / "all.png").stat().st_size > 1000
    with pytest.raises(ConfigError, match="other settings"):
        run(monkeypatch, tmp_path / "work", "--keep", "0.4")


@pytest.mark.slow
def test_processes_choose_and_learn_the_same_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for processes in "12":
        assert run(monkeypatch, tmp_path / processes, "--processes", processes) == 0

    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(tmp_path / "2") for path in (tmp_path / "2").rglob("*") if path.is_file())
    assert {Path(f"{method}-0.kept.npy") for method in choosing.METHODS} < set(files)
    for path in files:
        assert (tmp_path / "1" / path).read_bytes() == (tmp_path / "2" / path).read_bytes(), path


def test_spread_and_means_are_those_of_the_seeds() -> None:
    rows = [{"method": "all", "seed": k, "kept": 4, "kept_easy": 0.5, "where": k / 10, "overall": 0.5} for k in (1, 3)]

    told = json.loads(json.dumps(report.summarize(rows)))

    assert (told["kept"], told["kept_easy"], told["where"]) == pytest.approx((4, 0.5, 0.2))
    assert told["spread"] == pytest.approx({"where": 0.02**0.5, "overall": 0.0})
    assert told["by_seed"]["where"] == pytest.approx([0.1, 0.3])
