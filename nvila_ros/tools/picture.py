"""An answer drawn onto what it is about: the newest frame, the question, the answer, the other frames and their stamps.

In: frames ``(H, W, 3)`` uint8 RGB. Out: one picture of the same kind, `WIDTH` pixels wide. The text is drawn with
OpenCV's own strokes, which need no font file and know ASCII only; other characters are shown as `?`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from nvila_ros.errors import FrameError
from nvila_ros.types import Frame

WIDTH = 1280
_MARGIN = 24
_PAPER, _INK, _FAINT, _ACCENT = (22, 24, 28), (240, 240, 240), (150, 156, 166), (118, 222, 148)
_FONT = cv2.FONT_HERSHEY_DUPLEX


def draw_answer(frames: Sequence[Frame], question: str, answer: str, notes: Sequence[str]) -> np.ndarray:
    """Draw an answer.

    Args:
        frames: at least one, in capture order; the newest is shown large, and with others a strip of all of them.
        question: as it was asked.
        answer: what was said.
        notes: small lines below.

    Returns:
        (height, WIDTH, 3) uint8 RGB.
    """
    newest = _fit_width(frames[-1].image, WIDTH)
    bands = [newest]
    if len(frames) > 1:
        bands.append(_draw_strip(frames))
    bands += [_draw_text(question, 1.0, _INK), _draw_text(answer, 1.3, _ACCENT)]
    bands += [_draw_text(note, 0.6, _FAINT) for note in notes]
    return np.concatenate([*bands, np.full((_MARGIN // 2, WIDTH, 3), _PAPER, np.uint8)])


def save_picture(path: Path, image: np.ndarray) -> None:
    """Write an image, (H, W, 3) uint8 RGB; the name's ending chooses the format.

    Raises:
        FrameError: it cannot be written there.
    """
    try:
        is_written = cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:  # an ending that OpenCV does not know
        is_written = False
    if not is_written:
        raise FrameError(f"{path} cannot be written; give a writable folder and a name that ends in .png or .jpg")


def _draw_strip(frames: Sequence[Frame]) -> np.ndarray:
    """All frames side by side, each over its time before the newest."""
    count = len(frames)
    height, width = frames[-1].image.shape[:2]
    cell_px = (WIDTH - _MARGIN) // count - 6
    thumb_px = min(round(cell_px * height / width), 240)
    strip = np.full((thumb_px + 52, WIDTH, 3), _PAPER, np.uint8)
    for k, frame in enumerate(frames):
        left = _MARGIN // 2 + k * (cell_px + 6) + 3
        strip[12 : 12 + thumb_px, left : left + cell_px] = _resize(frame.image, cell_px, thumb_px)
        since_s = (frame.stamp_ns - frames[-1].stamp_ns) / 1e9
        _put(strip, f"{since_s:+.2f} s" if since_s else "0 s", (left, thumb_px + 38), 0.55, _FAINT)
    return strip


def _draw_text(text: str, scale: float, color: tuple[int, int, int]) -> np.ndarray:
    """A band with a text, broken into lines that fit."""
    lines = _wrap(text, scale, WIDTH - 2 * _MARGIN)
    line_px = round(34 * scale) + 8
    band = np.full((line_px * len(lines) + 8, WIDTH, 3), _PAPER, np.uint8)
    for k, line in enumerate(lines):
        _put(band, line, (_MARGIN, line_px * (k + 1) - round(6 * scale)), scale, color)
    return band


def _wrap(text: str, scale: float, width_px: int) -> list[str]:
    """Break a text between words, and a word that alone is too wide between its letters."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if _width(joined, scale) <= width_px:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for letter in word:
            if _width(lines[-1] + letter, scale) > width_px:
                lines.append("")
            lines[-1] += letter
    return lines


def _width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, _FONT, scale, _thickness(scale))[0][0])


def _put(image: np.ndarray, text: str, at: tuple[int, int], scale: float, color: tuple[int, int, int]) -> None:
    ascii_text = text.encode("ascii", "replace").decode()
    cv2.putText(image, ascii_text, at, _FONT, scale, color, _thickness(scale), cv2.LINE_AA)


def _thickness(scale: float) -> int:
    return 2 if scale >= 1 else 1


def _fit_width(image: np.ndarray, width: int) -> np.ndarray:
    return _resize(image, width, max(round(image.shape[0] * width / image.shape[1]), 1))


def _resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    is_smaller = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC)
