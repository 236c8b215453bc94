"""Words drawn on a frame: an answer, its probabilities and the latest events, for people who look at a screen.

OpenCV's stroke font needs no font file and knows ASCII only; other characters become `?`.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

MAX_CHARACTERS = 90
"""Of a line; longer ones are cut."""
_FONT = cv2.FONT_HERSHEY_DUPLEX
_PANEL, _BRIGHT, _DIM = (14, 17, 16), (240, 243, 242), (155, 165, 161)
_SHADE = 0.3
"""How much of the frame is left behind the words."""


def annotate(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Draw lines on a dark band at the foot of a frame; the first is dim, being the question.

    Args:
        image: (H, W, 3) uint8 RGB; it is left as it is.
        lines: as many as fit are drawn, the first ones first.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    drawn: np.ndarray = np.ascontiguousarray(image).copy()
    height, width = drawn.shape[:2]
    scale = max(0.35, width / 1280)
    step = max(1, round(32 * scale))
    shown = [_ascii(line) for line in lines[: max(0, height // step - 1)]]
    top = height - step * len(shown) - step // 2
    if not shown or top < 0:
        return drawn
    band = drawn[top:]
    band[:] = band * _SHADE + np.array(_PANEL) * (1 - _SHADE)
    for place, line in enumerate(shown, start=1):
        fit = min(1.0, (width - step) / max(1, cv2.getTextSize(line, _FONT, scale * 0.8, 1)[0][0]))
        at = (step // 2, top + place * step - step // 8)
        cv2.putText(drawn, line, at, _FONT, scale * 0.8 * fit, _DIM if place == 1 else _BRIGHT, 1, cv2.LINE_AA)
    return drawn


def _ascii(line: str) -> str:
    cut = line if len(line) <= MAX_CHARACTERS else f"{line[: MAX_CHARACTERS - 3]}..."
    return "".join(char if char.isprintable() else " " for char in cut.encode("ascii", "replace").decode())
