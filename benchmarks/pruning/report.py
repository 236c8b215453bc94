"""What the runs gave: means and spreads over the seeds, as a table and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from rich.table import Table

from benchmarks.pruning.drawn import DrawnSet
from nvila_ros.training.conversations.planted import PLANTS

_PAPER, _INK, _FAINT, _DOT = (255, 255, 255), (40, 44, 52), (208, 212, 218), (32, 106, 196)
_FONT = cv2.FONT_HERSHEY_DUPLEX
_WIDTH, _LEFT, _RIGHT, _ROW, _HEAD = 760, 130, 40, 34, 44  # px


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


def as_table(told: dict[str, dict[str, Any]], base: dict[str, float]) -> Table:
    """Return one row for each way of choosing: shares of each plant kept, and accuracies; first those of the base."""
    kinds = list(next(iter(told.values()))["spread"])
    table = Table("chosen by", "samples", *PLANTS, *kinds)
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("none (base)", "0", *("-" for _ in PLANTS), *(f"{base[kind]:.3f}" for kind in kinds))
    for method, row in told.items():
        shares = [f"{row[f'kept_{plant}']:.2f}" if f"kept_{plant}" in row else "-" for plant in PLANTS]
        accuracies = [f"{row[kind]:.3f}" for kind in kinds]
        accuracies[-1] += f" +- {row['spread']['overall']:.3f}"
        table.add_row(method, f"{row['kept']:.0f}", *shares, *accuracies)
    return table


def draw_figure(told: dict[str, dict[str, Any]], helpful: Sequence[str]) -> np.ndarray:
    """Return a picture, (H, W, 3) uint8 RGB: a band for each helpful kind and one over all, a dot for each seed."""
    return np.concatenate([_draw_band(told, name) for name in (*helpful, "overall")])


def _draw_band(told: dict[str, dict[str, Any]], name: str) -> np.ndarray:
    """Draw a line from the lowest to the highest seed of each method, its dots and a stroke at the mean."""
    band = np.full((_HEAD + _ROW * len(told) + 30, _WIDTH, 3), _PAPER, np.uint8)
    values = [value for row in told.values() for value in row["by_seed"][name]]
    low, high = np.floor(min(values) * 20) / 20, np.ceil(max(values) * 20) / 20
    high = high if high > low else low + 0.05
    floor = _HEAD + _ROW * len(told) - _ROW // 3
    for tick in np.linspace(low, high, 6).tolist():
        x = _x_of(tick, low, high)
        cv2.line(band, (x, _HEAD - 14), (x, floor), _FAINT, 1)
        _put(band, f"{tick:.2f}", (x - 14, floor + 20), 0.42)
    _put(band, f"accuracy, {name}", (_LEFT, 22), 0.5)
    for number, (method, row) in enumerate(told.items()):
        y = _HEAD + _ROW * number
        xs = [_x_of(value, low, high) for value in row["by_seed"][name]]
        mean = _x_of(row[name], low, high)
        cv2.line(band, (min(xs), y), (max(xs), y), _DOT, 2, cv2.LINE_AA)
        cv2.line(band, (mean, y - 9), (mean, y + 9), _INK, 2, cv2.LINE_AA)
        for x in xs:
            cv2.circle(band, (x, y), 5, _DOT, cv2.FILLED, cv2.LINE_AA)
        _put(band, method, (16, y + 5), 0.5)
    return band


def _x_of(value: float, low: float, high: float) -> int:
    return _LEFT + round((_WIDTH - _LEFT - _RIGHT) * (value - low) / (high - low))


def _put(image: np.ndarray, text: str, at: tuple[int, int], scale: float) -> None:
    cv2.putText(image, text, at, _FONT, scale, _INK, 1, cv2.LINE_AA)
