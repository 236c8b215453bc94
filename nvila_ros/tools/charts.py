"""Charts of training runs, by matplotlib: losses by step, and scores of samples by sub-dataset.

A figure is made without pyplot, so nothing global changes and no display is needed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nvila_ros.files import atomic_file
from nvila_ros.training.score_run import Scores

BLUE, ORANGE, GRAY = "#0072b2", "#d55e00", "#b8bcc2"
"""Of the palette of Okabe and Ito, which colour-blind readers distinguish."""
MAX_GROUPS = 8
"""Sub-datasets that are drawn."""
_MEMORY, _NUM_BINS = 0.95, 80
STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "grid.color": "#e4e6ea",
    "legend.frameon": False,
    "savefig.dpi": 110,
    "text.parse_math": False,  # names of data sets may hold $
}

styled = style.context(STYLE)
"""Decorates what draws: settings are read when a part of a figure is made."""


def new_charts(num_rows: int, height_in: float, width_in: float = 9.0) -> tuple[Figure, list[Axes]]:
    """Return a figure with charts one below the other, each `height_in` inches high."""
    figure = Figure(figsize=(width_in, num_rows * height_in))
    return figure, figure.subplots(num_rows, squeeze=False)[:, 0].tolist()


@styled
def save_chart(path: Path, figure: Figure) -> None:
    """Write a figure as PNG; the file is whole or the one before it.

    Raises:
        ConfigError: it cannot be written.
    """
    with warnings.catch_warnings(), atomic_file(path) as part:
        warnings.filterwarnings("ignore", "Glyph .* missing")  # such letters become boxes
        figure.savefig(part, format="png")


@styled
def draw_losses(entries: Sequence[dict[str, Any]], title: str, num_steps: int) -> Figure:
    """Draw the loss of each step that had one, and over it a running mean; there may be none.

    Args:
        entries: with `step` and `loss`, None where a step learned nothing.
        title: of the chart.
        num_steps: of the whole run, which is the width of the chart.
    """
    figure, (axes,) = new_charts(1, 4.0)
    axes.set(title=title, xlabel="step", ylabel="loss", xlim=(1, max(num_steps, 2)))
    points = [(entry["step"], entry["loss"]) for entry in entries if entry["loss"] is not None]
    if points:
        steps, losses = np.array(points, np.float64).T
        axes.plot(steps, losses, ".", color=GRAY, markersize=4, label="step")
        axes.plot(steps, running_mean(losses), color=BLUE, linewidth=1.8, label="running mean")
        low, high = min(0.0, float(losses.min())), float(np.percentile(losses, 99))
        axes.set_ylim(low, high + 0.08 * (high - low) if high > low else low + 1)  # one far loss flattens no others
        axes.legend()
    return figure


def running_mean(losses: np.ndarray) -> np.ndarray:
    """Return at each step the mean of all losses up to it, weighted down by 0.95 a step, (N,) float64."""
    mean, weight, means = 0.0, 0.0, []
    for loss in losses.tolist():
        mean, weight = _MEMORY * mean + (1 - _MEMORY) * loss, _MEMORY * weight + 1 - _MEMORY
        means.append(mean / weight)
    return np.array(means)


@styled
def draw_scores(scores: Scores, delta_N: np.ndarray, is_kept_N: np.ndarray) -> Figure:
    """Draw a histogram of the scores of each of the first `MAX_GROUPS` sub-datasets, kept samples coloured.

    Args:
        scores: of a run.
        delta_N: the score of each sample, float64.
        is_kept_N: whether it is kept, bool.
    """
    groups = scores.groups[:MAX_GROUPS]
    figure, charts = new_charts(len(groups), 2.0)
    for number, (axes, name) in enumerate(zip(charts, groups, strict=True)):
        is_mine = scores.group_N == number
        _draw_histogram(axes, name, delta_N[is_mine], is_kept_N[is_mine])
    charts[0].legend()
    charts[-1].set_xlabel("score")
    return figure


def _draw_histogram(axes: Axes, name: str, delta_N: np.ndarray, is_kept_N: np.ndarray) -> None:
    low, high = np.percentile(delta_N, (0.5, 99.5)).tolist()
    low, high = (low, high) if high > low else (math.floor(low - 0.5), math.floor(low - 0.5) + 1.5)
    shown_N = np.clip(delta_N, low, high)  # a few far scores would squeeze all others together
    parts = [shown_N[is_kept_N], shown_N[~is_kept_N]]
    axes.hist(parts, _NUM_BINS, range=(low, high), stacked=True, color=[BLUE, GRAY], label=["kept", "left out"])
    axes.set(title=f"{name}: {is_kept_N.sum():,} of {len(delta_N):,} kept", ylabel="samples")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
