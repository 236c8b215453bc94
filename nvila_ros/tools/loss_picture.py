"""The losses of a run as a picture: each step faint, and over it a mean that follows.

In: entries of a log. Out: ``(HEIGHT, WIDTH, 3)`` uint8 RGB.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

WIDTH, HEIGHT = 960, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 48, 44
_PAPER, _GRID, _FAINT, _POINT, _LINE = (22, 24, 28), (48, 52, 60), (150, 156, 166), (78, 110, 92), (118, 222, 148)
_FONT = cv2.FONT_HERSHEY_DUPLEX
_MEMORY = 0.95
"""How much of a mean is kept at each step."""


def draw_losses(entries: Sequence[dict[str, Any]], title: str, num_steps: int) -> np.ndarray:
    """Draw the losses of the steps that had one; there may be none.

    Args:
        entries: with `step` and `loss`, None where a step learned nothing.
        title: what is written above, ASCII.
        num_steps: of the whole run.
    """
    image = np.full((HEIGHT, WIDTH, 3), _PAPER, np.uint8)
    points = [(entry["step"], entry["loss"]) for entry in entries if entry["loss"] is not None]
    _put(image, title, (_LEFT, 30), 0.6)
    if not points:
        return image
    steps, losses = np.array([step for step, _ in points]), np.array([loss for _, loss in points])
    # One far loss would press all others flat.
    ticks = _ticks(min(0.0, float(losses.min())), float(np.percentile(losses, 99)))
    low, high = ticks[0], ticks[-1]
    x = _LEFT + (steps - 1) / max(num_steps - 1, 1) * (WIDTH - _LEFT - _RIGHT)

    def down(values: np.ndarray) -> np.ndarray:
        return _TOP + (high - np.clip(values, low, high)) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    for tick, y in zip(ticks, down(np.array(ticks)), strict=True):
        cv2.line(image, (_LEFT, round(y)), (WIDTH - _RIGHT, round(y)), _GRID, 1)
        _put(image, f"{tick:g}", (8, round(y) + 5), 0.45)
    for step in sorted({1, max(num_steps // 2, 1), num_steps}):
        at = _LEFT + (step - 1) / max(num_steps - 1, 1) * (WIDTH - _LEFT - _RIGHT)
        _put(image, str(step), (round(at) - 9 * len(str(step)) // 2, HEIGHT - 14), 0.45)
    for each_x, y in zip(x, down(losses), strict=True):
        cv2.circle(image, (round(each_x), round(y)), 2, _POINT, cv2.FILLED, cv2.LINE_AA)
    line = np.stack([x, down(smooth(losses))], axis=1).round().astype(np.int32)
    cv2.polylines(image, [line], False, _LINE, 2, cv2.LINE_AA)
    return image


def smooth(losses: np.ndarray) -> np.ndarray:
    """Return at each step the mean of all before it, the nearest weighing most, (N,) float64."""
    mean, weight, means = 0.0, 0.0, []
    for loss in losses.tolist():
        mean, weight = _MEMORY * mean + (1 - _MEMORY) * loss, _MEMORY * weight + 1 - _MEMORY
        means.append(mean / weight)
    return np.array(means)


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers, evenly apart, from below the lowest to above the highest."""
    span = max(high - low, 1e-9)
    unit = 10 ** math.floor(math.log10(span / 4))
    apart = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 5)
    return [round(k * apart, 12) for k in range(math.floor(low / apart), math.floor(high / apart) + 2)]


def _put(image: np.ndarray, text: str, at: tuple[int, int], scale: float) -> None:
    cv2.putText(image, text.encode("ascii", "replace").decode(), at, _FONT, scale, _FAINT, 1, cv2.LINE_AA)
