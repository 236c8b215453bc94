"""Grounds of any brightness, tint and pattern for wide scenes: plain, textured, cluttered or a photograph.

In: a `Background` whose kind is one of `WIDE_KINDS`. Out: the ground, ``(height, width, 3)`` uint8 RGB at any size.
Both cameras show it: the first as it is, the second as a surface under its own light.
"""

from __future__ import annotations

import math
from colorsys import hsv_to_rgb
from functools import lru_cache

import cv2
import numpy as np

from nvila_ros.world.photographs import crop_photograph
from nvila_ros.world.scene import Background
from nvila_ros.world.surfaces import layer_noise

TONES: tuple[str, ...] = ("light", "dark", "tinted", "muted")
"""What the two colours of a drawn ground are like."""
PHOTOGRAPH, CLUTTER = "photograph", "clutter"
WIDE_KINDS: tuple[str, ...] = (CLUTTER, PHOTOGRAPH)
"""Kinds of ground that only this module draws."""
_CLUTTER_ROWS = 120


def draw_tone(rng: np.random.Generator, tone: str) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Draw the two colours of a ground, RGB levels, by one of `TONES`."""
    hue, level, contrast, tint = rng.random(4).tolist()
    middle, saturation = {
        "light": (0.74 + 0.24 * level, 0.10 * tint),
        "dark": (0.03 + 0.24 * level, 0.35 * tint),
        "tinted": (0.3 + 0.65 * level, 0.2 + 0.5 * tint),
        "muted": (0.3 + 0.45 * level, 0.15 * tint),
    }[tone]
    half = 0.02 + 0.13 * contrast * contrast
    return tuple(_levels(hue, saturation, middle + sign * half) for sign in (-1, 1))  # type: ignore[return-value]


def _levels(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = hsv_to_rgb(hue, saturation, min(max(value, 0.0), 1.0))
    return round(255 * red), round(255 * green), round(255 * blue)


@lru_cache(maxsize=8)
def render_ground(background: Background, aspect: float, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB of a ground of `WIDE_KINDS`; shared, so not writeable."""
    if background.kind == PHOTOGRAPH:
        frame = crop_photograph(background.photograph, background.seed, aspect, width, height)
        sigma = background.period * height
        if sigma >= 0.3:
            frame = cv2.GaussianBlur(frame, (0, 0), sigma * width / (aspect * height), sigmaY=sigma)
    else:
        frame = cv2.resize(_clutter(background, aspect), (width, height), interpolation=cv2.INTER_AREA)
    frame.flags.writeable = False
    return frame


@lru_cache(maxsize=8)
def _clutter(background: Background, aspect: float) -> np.ndarray:
    """Irregular leaves of all sizes over each other, each with a grain of its own, out of focus by `period`."""
    rng = np.random.default_rng((background.seed, 0xC1))
    rows, columns = 2 * _CLUTTER_ROWS, round(2 * _CLUTTER_ROWS * aspect)
    frame = np.empty((rows, columns, 3), np.uint8)
    frame[:] = background.low
    low, high = np.array(background.low, float), np.array(background.high, float)
    for radius in np.sort(rows * 0.5 / (1 + 30 * rng.random(90) ** 1.5))[::-1].tolist():
        share, spread = rng.random(), 70 * rng.random() ** 2
        color = np.clip(low + share * (high - low) + rng.normal(0, spread + 6, 3), 0, 255)
        cv2.fillPoly(frame, [_leaf(rng, radius, rows, columns)], color.tolist(), cv2.LINE_AA)
    grain = layer_noise(rng, rows // 16, columns // 16, 4)
    grain = cv2.resize(grain, (columns, rows))[..., None] - 0.5
    lit = np.clip(frame * (1 + 0.5 * rng.random() * grain), 0, 255).astype(np.uint8)
    return cv2.GaussianBlur(lit, (0, 0), 0.5 + background.period * rows)


def _leaf(rng: np.random.Generator, radius: float, rows: int, columns: int) -> np.ndarray:
    """(n, 2) int32 outline of an irregular, often long polygon anywhere in the frame."""
    num_points = int(rng.integers(4, 9))
    turns = np.sort(rng.random(num_points)) * 2 * math.pi
    radii = radius * rng.uniform(0.4, 1.3, num_points)
    points = np.stack([np.cos(turns) * radii, np.sin(turns) * radii * rng.uniform(0.15, 1.0)], axis=1)
    angle = rng.random() * 2 * math.pi
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    centre = rng.random(2) * (columns, rows)
    return np.rint(points @ turn + centre).astype(np.int32)
