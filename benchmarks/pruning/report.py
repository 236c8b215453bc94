"""What the runs gave: means and spreads over the seeds, as a table and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.pruning.drawn import DrawnSet
from nvila_ros.tools.charts import BLUE, new_charts, styled
from nvila_ros.training.conversations.planted import PLANTS


def kept_shares(drawn: DrawnSet, is_kept: np.ndarray, kinds: Sequence[str]) -> dict[str, float]:
    """Return the share kept of each plant, `kept_wrong`, and of each in each sub-dataset, `kept_wrong_color`."""
    found = {}
    for number, plant in enumerate(PLANTS):
        is_plant = drawn.groups == number
        among = {f"kept_{plant}": is_plant}
        among |= {f"kept_{plant}_{kind}": is_plant & (drawn.subsets == k) for k, kind in enumerate(kinds)}
        found |= {name: float(is_kept[mine].mean()) for name, mine in among.items() if mine.any()}
    return found


def summarize(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of every number over the seeds, and of accuracies also the spread (standard deviation)."""
    names = [name for name in results[0] if name not in ("method", "seed")]
    means = {name: statistics.fmean(each[name] for each in results) for name in names}
    accuracies = [name for name in names if not name.startswith("kept")]
    by_seed = {name: [each[name] for each in results] for name in accuracies}
    spreads = {name: statistics.stdev(values) if len(values) > 1 else 0.0 for name, values in by_seed.items()}
    return {**means, "spread": spreads, "by_seed": by_seed}


def as_table(figures: dict[str, dict[str, Any]], base: dict[str, float]) -> Table:
    """Return one row for each way of choosing: shares of each plant kept, and accuracies; first those of the base."""
    kinds = list(next(iter(figures.values()))["spread"])
    table = Table("chosen by", "samples", *PLANTS, *kinds)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("none (base)", "0", *("-" for _ in PLANTS), *(f"{base[kind]:.3f}" for kind in kinds))
    for method, row in figures.items():
        shares = [f"{row[f'kept_{plant}']:.2f}" if f"kept_{plant}" in row else "-" for plant in PLANTS]
        accuracies = [f"{row[kind]:.3f}" for kind in kinds]
        accuracies[-1] += f" +- {row['spread']['overall']:.3f}"
        table.add_row(method, f"{row['kept']:.0f}", *shares, *accuracies)
    return table


@styled
def draw_figure(figures: dict[str, dict[str, Any]], helpful: Sequence[str]) -> Figure:
    """Draw the accuracy on each helpful kind and over all kinds: a dot for each seed, a stroke at the mean."""
    names = (*helpful, "overall")
    figure, charts = new_charts(len(names), 0.5 + 0.28 * len(figures), width_in=7.0)
    for axes, name in zip(charts, names, strict=True):
        for method, row in figures.items():
            values = row["by_seed"][name]
            axes.plot(values, [method] * len(values), "o-", color=BLUE, markersize=5, linewidth=1.5)
            axes.plot([row[name]], [method], "|", color="black", markersize=14, markeredgewidth=1.8)
        axes.set(title=f"accuracy, {name}")
        axes.invert_yaxis()
        axes.margins(y=0.12)
    return figure
