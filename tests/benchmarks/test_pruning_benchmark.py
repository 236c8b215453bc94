"""The benchmark of DeltaLoss: what it compares with is dealt as it says, and runs that are there are not run again."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pyarrow")
from benchmarks import prune
from nvila_ros.errors import ConfigError


@given(clusters=st.lists(st.integers(0, 5), min_size=1, max_size=40), seed=st.integers(0, 9), data=st.data())
def test_every_cluster_gives_as_many_or_all_it_has(clusters: list[int], seed: int, data: st.DataObject) -> None:
    num_kept = data.draw(st.integers(1, len(clusters)))
    of = np.array(clusters)

    chosen = prune.spread(of, num_kept, np.random.default_rng(seed))

    assert len(set(chosen.tolist())) == num_kept
    given_by = {cluster: int((of[chosen] == cluster).sum()) for cluster in set(clusters)}
    most = max(given_by.values())
    assert all(num >= most - 1 or num == clusters.count(cluster) for cluster, num in given_by.items())


@given(items=st.lists(st.integers(), max_size=20), size=st.integers(1, 5))
def test_groups_hold_all_items_in_order(items: list[int], size: int) -> None:
    groups = list(prune.in_groups(iter(items), size))

    assert [item for group in groups for item in group] == items
    assert all(len(group) == size for group in groups[:-1])


@pytest.mark.slow
def test_benchmark_runs_once_and_then_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = [
        "--seeds",
        "1",
        "--samples",
        "12",
        "--base-samples",
        "4",
        "--questions",
        "1",
        "--easy",
        "color",
        "--threads",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["prune", "--work", str(tmp_path), *sizes])

    assert prune.main() == 0
    first = capsys.readouterr().out
    monkeypatch.setattr(prune, "train", None)  # calling it would fail
    monkeypatch.setattr(prune, "select", None)
    assert prune.main() == 0

    assert capsys.readouterr().out.splitlines()[-1] == first.splitlines()[-1]
    monkeypatch.setattr(sys, "argv", ["prune", "--work", str(tmp_path), *sizes, "--keep", "0.4"])
    with pytest.raises(ConfigError, match="other settings"):
        prune.main()
