"""More than eight bits to eight: which of a picture's values are black, and which are white.

One code path for cameras (`mono16`), files of 16 bits and DICOM. In: values of any range. Out: uint8. A window is
`auto` (percentiles of the picture), `MIN:MAX`, `CENTRE/WIDTH` as radiologists name it, `full` (the high byte of sixteen
bits: no guess is made about exposure), or `file`: what the picture itself says, else `full`.

Source of the functions: DICOM PS3.3, C.11.2.1.2 (LINEAR, the one of CENTRE/WIDTH; LINEAR_EXACT; SIGMOID).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

import numpy as np

from nvila_ros.errors import ConfigError

AUTO, FULL, FILE = "auto", "full", "file"
FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
PERCENTILES = (0.5, 99.5)
"""Of the values that `auto` shows as black and white; what lies beyond saturates."""
WINDOW_RULE = "auto, full, file, MIN:MAX as 200:4000, or CENTRE/WIDTH as 50/400"
_NUMBER = r"[+-]?\d{1,9}(?:\.\d{1,9})?"


@dataclass(frozen=True, slots=True)
class Window:
    """What of a picture's range is shown.

    Attributes:
        kind: `AUTO`, `FULL`, `FILE`, or one of `FUNCTIONS`.
        centre: of a function, in the picture's values.
        width: likewise.
    """

    kind: str
    centre: float = 0.0
    width: float = 0.0

    def __str__(self) -> str:
        """Return the text that `parse_window` reads."""
        if self.kind == "LINEAR_EXACT":
            return f"{self.centre - self.width / 2:g}:{self.centre + self.width / 2:g}"
        return f"{self.centre:g}/{self.width:g}" if self.kind in FUNCTIONS else self.kind


OWN = Window(FILE)
"""What the picture itself says."""


def named_window(window: Window) -> dict[str, str]:
    """Return what a run records of its window: nothing where pictures say themselves what is shown."""
    return {} if window == OWN else {"window": str(window)}


def parse_window(text: str) -> Window:
    """Read a window.

    Raises:
        ConfigError: it is none; the rule is named.
    """
    if text in (AUTO, FULL, FILE):
        return Window(text)
    match = re.fullmatch(rf"({_NUMBER})([:/])({_NUMBER})", text)
    if match:
        first, second = float(match[1]), float(match[3])
        window = span(first, second) if match[2] == ":" else Window("LINEAR", first, second)
        if window.width > 0 and (match[2] == ":" or second >= 1):
            return window
    raise ConfigError(f"a window must be {WINDOW_RULE}, with MIN < MAX and WIDTH >= 1, got {text!r}")


def span(low: float, high: float) -> Window:
    """Return the window in which `low` is black and `high` white."""
    return Window("LINEAR_EXACT", (low + high) / 2, high - low)


def find_span(values: np.ndarray) -> Window:
    """Return the window of `auto`: between percentiles, of any shape of values; at least one value wide."""
    if not values.size:
        return span(0, 1)
    if values.dtype == np.uint16:  # counts are as good as sorting, and quicker
        counts = np.cumsum(np.bincount(values.reshape(-1), minlength=1 << 16))
        low, high = (float(np.searchsorted(counts, p / 100 * (values.size - 1), side="right")) for p in PERCENTILES)
    else:
        low, high = (float(p) for p in np.percentile(values, PERCENTILES, method="lower"))
    return span(low, max(high, low + 1))


def show_values(values: np.ndarray, window: Window) -> np.ndarray:
    """Return values as brightness, uint8 of the same shape.

    Args:
        values: any numbers, finite.
        window: what is shown; `FULL` and `FILE` are of unsigned 16 bits.
    """
    if window.kind == AUTO:
        window = find_span(values)
    if values.dtype == np.uint16:
        return np.take(_table(window), values)
    return _show_each(values, window)


@functools.lru_cache(maxsize=8)
def _table(window: Window) -> np.ndarray:
    """Return the brightness of every value of 16 bits."""
    return _show_each(np.arange(1 << 16), window)


def _show_each(values: np.ndarray, window: Window) -> np.ndarray:
    if window.kind in (FULL, FILE):
        return (values.astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
    values, centre, width = values.astype(np.float64), window.centre, window.width
    if window.kind == "SIGMOID":
        shares = 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    elif window.kind == "LINEAR" and width > 1:
        shares = (values - (centre - 0.5)) / (width - 1) + 0.5
    elif window.kind == "LINEAR":  # one value wide: a threshold
        shares = (values > centre - 0.5).astype(np.float64)
    else:
        shares = (values - centre) / width + 0.5
    return np.asarray(np.rint(shares.clip(0, 1) * 255), np.uint8)
