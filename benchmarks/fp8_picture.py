"""The losses of all runs of `benchmarks.fp8` in one picture."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np


def draw_losses(results: list[dict[str, Any]]) -> np.ndarray:
    """Draw the training losses of all runs over the steps, logarithmic, (400, 900, 3) uint8 RGB."""
    paper, ink, colors = (22, 24, 28), (150, 156, 166), {"bf16": (110, 168, 254), "fp8": (118, 222, 148)}
    image = np.full((400, 900, 3), paper, np.uint8)
    curves = [np.log(smooth(np.array(each["losses"]))) for each in results]
    low, high = min(curve.min() for curve in curves), max(curve.max() for curve in curves)
    for result, curve in zip(results, curves, strict=True):
        x = np.linspace(60, 880, len(curve))
        y = 370 - (curve - low) / (high - low) * 340
        points = np.stack([x, y], axis=1).round().astype(np.int32)
        cv2.polylines(image, [points], False, colors[result["precision"]], 1, cv2.LINE_AA)
    font = cv2.FONT_HERSHEY_DUPLEX
    for value, y in ((high, 34), (low, 374)):
        cv2.putText(image, f"{math.exp(value):.2f}", (6, y), font, 0.45, ink, 1, cv2.LINE_AA)
    for i, (name, color) in enumerate(colors.items()):
        cv2.putText(image, name, (800, 40 + 24 * i), font, 0.6, color, 1, cv2.LINE_AA)
    return image


def smooth(losses: np.ndarray) -> np.ndarray:
    """Return means over up to 10 steps."""
    width = min(10, len(losses))
    return np.convolve(losses, np.full(width, 1 / width), mode="valid")
