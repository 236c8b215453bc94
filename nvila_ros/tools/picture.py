"""A picture of an answer: the newest frame, the question, the answer, and all frames with their times.

In: frames ``(H, W, 3)`` uint8 RGB. Out: one picture of the same kind, `WIDTH` pixels wide. Text is drawn with OpenCV's
stroke font, which needs no font file and knows ASCII only; other characters become `?`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from nvila_ros.errors import FrameError
from nvila_ros.types import Frame

WIDTH = 1280
FRAME_WIDTH, FRAME_HEIGHT = 720, 540
"""The newest frame is scaled to fit this box."""
_MARGIN = 24
_BACKGROUND, _TEXT, _DIMMED, _ACCENT = (22, 24, 28), (240, 240, 240), (150, 156, 166), (118, 222, 148)
_FONT = cv2.FONT_HERSHEY_DUPLEX
_MAX_STRIP_HEIGHT = 160


def draw_answer(frames: Sequence[Frame], question: str, answer: str, notes: Sequence[str]) -> np.ndarray:
    """Draw an answer.

    Args:
        frames: at least one, in capture order. The newest is shown large; several are also shown as a strip below.
        question: as it was asked.
        answer: its text.
        notes: small lines below the answer.

    Returns:
        (height, WIDTH, 3) uint8 RGB.
    """
    newest = _fit(frames[-1].image, FRAME_WIDTH, FRAME_HEIGHT)
    width = WIDTH - newest.shape[1]
    texts = [(question, 1.0, _TEXT), (answer, 1.5, _ACCENT), *((note, 0.6, _DIMMED) for note in notes)]
    column = np.concatenate([_blank(_MARGIN, width), *(_draw_text(*text, width) for text in texts)])
    height = max(newest.shape[0], column.shape[0])
    bands = [np.concatenate([_pad(newest, height), _pad(column, height)], axis=1)]
    if len(frames) > 1:
        bands.append(_draw_strip(frames))
    return np.concatenate(bands)


def save_picture(path: Path, image: np.ndarray) -> None:
    """Write an image, (H, W, 3) uint8 RGB; the suffix of the name chooses the format.

    Raises:
        FrameError: it cannot be written there.
    """
    try:
        is_written = cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    except cv2.error:  # a suffix that OpenCV does not know
        is_written = False
    if not is_written:
        raise FrameError(f"{path} cannot be written; give a writable folder and a name that ends in .png or .jpg")


def _draw_strip(frames: Sequence[Frame]) -> np.ndarray:
    """Draw all frames side by side, each over its time before the newest."""
    count = len(frames)
    height, width = frames[-1].image.shape[:2]
    cell_px = (WIDTH - _MARGIN) // count - 6
    thumbnail_px = min(max(round(cell_px * height / width), 1), _MAX_STRIP_HEIGHT)
    strip = _blank(thumbnail_px + 52, WIDTH)
    for k, frame in enumerate(frames):
        left = _MARGIN // 2 + k * (cell_px + 6) + 3
        strip[12 : 12 + thumbnail_px, left : left + cell_px] = _resize(frame.image, cell_px, thumbnail_px)
        since_s = (frame.stamp_ns - frames[-1].stamp_ns) / 1e9
        _put(strip, f"{since_s:+.2f} s" if since_s else "0 s", (left, thumbnail_px + 38), 0.55, _DIMMED)
    return strip


def _draw_text(text: str, scale: float, color: tuple[int, int, int], width: int) -> np.ndarray:
    """Draw a text, broken into lines that fit the width."""
    lines = _wrap(text, scale, width - 2 * _MARGIN)
    line_px = round(34 * scale) + 8
    band = _blank(line_px * len(lines) + 12, width)
    for k, line in enumerate(lines):
        _put(band, line, (_MARGIN, line_px * (k + 1) - round(6 * scale)), scale, color)
    return band


def _wrap(text: str, scale: float, width_px: int) -> list[str]:
    """Break a text between words, and a word that is too wide by itself between its letters."""
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


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), _BACKGROUND, np.uint8)


def _pad(image: np.ndarray, height: int) -> np.ndarray:
    """Fill an image up to a height with background below."""
    return np.concatenate([image, _blank(height - image.shape[0], image.shape[1])])


def _fit(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scale an image to the largest size of its shape that fits a box."""
    scale = min(width / image.shape[1], height / image.shape[0])
    return _resize(image, max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))


def _resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    is_smaller = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC)
