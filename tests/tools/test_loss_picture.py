"""Losses drawn: where they fell the line falls, and nothing that a run can hold breaks it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.tools.loss_picture import HEIGHT, WIDTH, draw_losses, smooth

LINE = (118, 222, 148)


def height_at(image: np.ndarray, x: int) -> float:
    rows = np.flatnonzero((image[:, x] == LINE).all(1))
    return float(rows.mean())


def test_line_falls_as_the_losses_do() -> None:
    entries = [{"step": step, "loss": 2.0 - step / 100} for step in range(1, 101)]

    image = draw_losses(entries, "falling", 100)

    heights = [height_at(image, x) for x in range(120, WIDTH - 60, 100)]
    assert heights == sorted(heights)
    assert heights[-1] - heights[0] > HEIGHT / 4


def test_line_of_an_unfinished_run_ends_where_the_run_is() -> None:
    image = draw_losses([{"step": step, "loss": 1.0} for step in range(1, 51)], "half", 100)

    columns = np.flatnonzero((image == LINE).all(2).any(0))
    assert columns.max() == pytest.approx(WIDTH / 2, abs=WIDTH / 15)


@given(st.lists(st.none() | st.floats(0, 1e6), max_size=30), st.integers(0, 20))
def test_any_losses_make_a_picture(losses: list[float | None], missing: int) -> None:
    entries = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]

    image = draw_losses(entries, "any", max(len(entries) + missing, 1))

    assert image.shape == (HEIGHT, WIDTH, 3)
    assert image.dtype == np.uint8


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50))
def test_smoothed_losses_stay_among_the_losses(losses: list[float]) -> None:
    found = smooth(np.array(losses))

    assert found[0] == pytest.approx(losses[0], rel=1e-9, abs=1e-12)
    assert found.min() >= min(losses) * (1 - 1e-9) - 1e-300  # the smallest numbers have no fractions
    assert found.max() <= max(losses) * (1 + 1e-9)
