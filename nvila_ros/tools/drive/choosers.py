"""Who chooses a robot's next step: a model, or a baseline that drives at the largest blob of the named colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from nvila_ros.prompt.navila import ACTIONS, SENTENCES, Action
from nvila_ros.serving.model import Model, load
from nvila_ros.world.rooms.house import ROOM_COLORS
from nvila_ros.world.scene import COLORS

_HUE_TOLERANCE, _MIN_SATURATION, _MIN_VALUE = 9, 110, 50
_MIN_AREA = 0.0008
_AHEAD_RAD = math.radians(12)
_NEAR_HEIGHT = 0.5
"""A thing of half a metre fills half the picture's height from some 0.7 m on, at 90 degrees of view."""


class ModelChooser:
    """A checkpoint or a build, asked as the node asks it."""

    def __init__(self, checkpoint: str | Path, *, threads: int = 0, backend: str = "auto") -> None:
        self._model: Model = load(str(checkpoint), threads=threads, backend=backend)

    def __call__(self, question: str, instruction: str, images: Sequence[np.ndarray]) -> Sequence[float]:
        """Return the probability of each action."""
        return self._model.ask(question, list(images), choices=SENTENCES).probabilities


@dataclass(frozen=True, slots=True)
class BlobChooser:
    """Turns until it sees the named colour, drives at its largest blob, and stops where that is large.

    It knows no shapes, no doorways and no past.
    """

    def __call__(self, question: str, instruction: str, images: Sequence[np.ndarray]) -> Sequence[float]:
        """Return 1 for its action."""
        action = self.choose(instruction, images[-1])
        return [float(action is each) for each in ACTIONS]

    def choose(self, instruction: str, image: np.ndarray) -> Action:
        """Return the action by the current frame."""
        color = next(color for color in ROOM_COLORS if color in instruction)
        height, width = image.shape[:2]
        blob = _largest_blob(image, color)
        if blob is None:
            return _turn("left", math.radians(45))
        left, top, wide, high = blob
        off = math.atan2(width / 2 - (left + wide / 2), width / 2)  # half the width is seen under 45 degrees
        if high > _NEAR_HEIGHT * height or (top + high >= height - 2 and high > 0.3 * height):
            return ACTIONS[0]
        if abs(off) > _AHEAD_RAD:
            return _turn("left" if off > 0 else "right", abs(off))
        return ACTIONS[1] if high > 0.35 * height else ACTIONS[3]


def _largest_blob(image: np.ndarray, color: str) -> tuple[int, int, int, int] | None:
    """Return left, top, width and height of the largest region of a colour, px; None where there is hardly any."""
    hue = int(cv2.cvtColor(np.uint8([[COLORS[color]]]), cv2.COLOR_RGB2HSV)[0, 0, 0])  # type: ignore[arg-type]
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    off = np.abs(hsv[..., 0].astype(int) - hue)
    is_color = (
        (np.minimum(off, 180 - off) <= _HUE_TOLERANCE) & (hsv[..., 1] > _MIN_SATURATION) & (hsv[..., 2] > _MIN_VALUE)
    )
    _, _, stats, _ = cv2.connectedComponentsWithStats(is_color.astype(np.uint8))
    if len(stats) < 2:
        return None
    best = stats[1:][stats[1:, cv2.CC_STAT_AREA].argmax()]
    if best[cv2.CC_STAT_AREA] < _MIN_AREA * is_color.size:
        return None
    return tuple(int(value) for value in best[:4])  # type: ignore[return-value]


def _turn(side: str, angle: float) -> Action:
    return min((a for a in ACTIONS if a.kind == side), key=lambda a: abs(a.amount - angle))
