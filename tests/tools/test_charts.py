"""Charts show what they are given, and nothing that a run can hold breaks them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="draws charts; comes with nvila_ros[train]")

from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import ConfigError
from nvila_ros.tools.charts import draw_losses, draw_scores, new_charts, running_mean, save_chart
from nvila_ros.training.score_run import Scores


def scores_of(*sizes: int) -> Scores:
    groups = tuple(f"set $x$ {k}" for k in range(len(sizes)))
    group_N = np.repeat(np.arange(len(sizes)), sizes)
    none_N = np.zeros(len(group_N), np.int64)
    return Scores(("set",), groups, (), none_N, none_N, group_N, none_N - 1, none_N, none_N, none_N, none_N)


def test_losses_are_points_and_their_running_mean_over_the_whole_run() -> None:
    entries = [{"step": step, "loss": None if step == 3 else 2.0 - step / 100} for step in range(1, 51)]

    (axes,) = draw_losses(entries, "falling $ losses", 100).axes

    points, mean = (line.get_xydata() for line in axes.lines)
    assert points.tolist() == [[entry["step"], entry["loss"]] for entry in entries if entry["loss"] is not None]
    assert (np.diff(mean[:, 1]) < 0).all()
    assert axes.get_xlim() == (1, 100)
    assert axes.get_title(loc="left") == "falling $ losses"


def test_one_far_loss_flattens_no_others() -> None:
    entries = [{"step": step, "loss": 1000.0 if step == 7 else 1.0 + step / 200} for step in range(1, 201)]

    (axes,) = draw_losses(entries, "far", 200).axes

    assert axes.get_ylim()[1] < 3


@given(st.lists(st.none() | st.floats(0, 1e6), max_size=30), st.integers(0, 20))
def test_any_losses_make_a_chart(losses: list[float | None], missing: int) -> None:
    entries = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]

    (axes,) = draw_losses(entries, "any", max(len(entries) + missing, 1)).axes

    assert len(axes.lines) == (2 if any(loss is not None for loss in losses) else 0)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50))
def test_running_mean_stays_among_the_losses(losses: list[float]) -> None:
    found = running_mean(np.array(losses))

    assert found[0] == pytest.approx(losses[0], rel=1e-9, abs=1e-12)
    assert found.min() >= min(losses) * (1 - 1e-9) - 1e-300  # the smallest numbers have no fractions
    assert found.max() <= max(losses) * (1 + 1e-9)


def test_histogram_of_each_sub_dataset_counts_every_sample_once() -> None:
    rng = np.random.default_rng(0)
    scores, delta_N = scores_of(900, 1, 30), rng.normal(size=931)
    delta_N[5], is_kept_N = 1e9, rng.random(931) < 0.25  # far scores are counted at the edge

    charts = draw_scores(scores, delta_N, is_kept_N).axes

    for number, axes in enumerate(charts):
        is_mine = scores.group_N == number
        kept, left_out = (sum(bar.get_height() for bar in bars) for bars in axes.containers)
        assert (kept, left_out) == ((is_kept_N & is_mine).sum(), (~is_kept_N & is_mine).sum())
        assert axes.get_title(loc="left").startswith(f"set $x$ {number}: {int(kept)} of ")


def test_chart_is_written_as_a_picture_whatever_its_letters(tmp_path: Path) -> None:
    figure, _ = new_charts(1, 2.0)
    figure.suptitle("\u4e2d $x")

    save_chart(tmp_path / "new" / "chart.png", figure)

    assert cv2.imread(str(tmp_path / "new" / "chart.png")).shape == (220, 990, 3)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["chart.png"]


def test_chart_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match="cannot be written"):
        save_chart(tmp_path / "file" / "chart.png", new_charts(1, 2.0)[0])
