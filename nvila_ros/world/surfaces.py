"""The surfaces of the second camera: concrete, wood, cloth, terrazzo and rooms out of focus, all of muted colours.

In: a `numpy.random.Generator`. Out: the light that such a surface throws back, per plane, at any size.

A surface is made once on a raster of `ROWS` rows and then resized, so one seed means the same picture at every
size, and no texture aliases in a small frame. All detail is value noise: random numbers on a coarse grid, interpolated
and added over octaves.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

GAMMA = 2.2
"""Power between a stored level 0..1 and the light that it stands for."""
ROWS = 320
"""Rows of the raster that textures are made on."""


def to_light(levels: np.ndarray) -> np.ndarray:
    """Linear light 0..1, float32, of levels 0..255."""
    return ((np.asarray(levels, np.float32) / 255) ** GAMMA).astype(np.float32)


def layer_noise(rng: np.random.Generator, rows: int, columns: int, octaves: int, fading: float = 0.55) -> np.ndarray:
    """Value noise of several octaves about 0.5.

    Args:
        rng: source of all randomness.
        rows: cells of the coarsest octave.
        columns: the same of its width.
        octaves: how often the cells are halved and finer noise is added.
        fading: strength of an octave relative to the coarser one before.

    Returns:
        (rows, columns) * 2 ** (octaves - 1) float32, mostly in 0..1.
    """
    field = rng.random((rows, columns), np.float32)
    strength = 1.0
    for _ in range(octaves - 1):
        strength *= fading
        field = cv2.resize(field, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
        field += strength * (rng.random(field.shape, np.float32) - 0.5)
    return field


def draw_surface(rng: np.random.Generator, aspect: float, width: int, height: int) -> np.ndarray:
    """Draw a surface under even light.

    Returns:
        (3, height, width) float32 linear light in R, G, B order; levels stay within 50..175.
    """
    side = round(ROWS * 1.25)
    field = MAKERS[tuple(MAKERS)[rng.integers(len(MAKERS))]](rng, side)
    low, high = _muted_pair(rng)
    field = np.clip(_turn(field, rng.random() * 2 * math.pi, round(ROWS * aspect)), 0, 1)
    is_smaller = height < ROWS
    field = cv2.resize(field, (width, height), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR)
    surface_CHW = np.empty((3, height, width), np.float32)
    for plane, darkest, lightest in zip(surface_CHW, to_light(low), to_light(high), strict=True):
        np.multiply(field, lightest - darkest, out=plane)
        plane += darkest
    return surface_CHW


def _muted_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two greyish colours, levels (3,) each: of one tint with a little of its opposite mixed in."""
    middle, half, warmth, cast = rng.random(4).tolist()
    middle, half = 88 + 50 * middle, 8 + 18 * half
    tint = np.array([14 * warmth - 4, 3 * cast, 4 - 14 * warmth])  # warm rather than cold, as floors and tables are
    shift = rng.uniform(-4, 4, 3)
    return middle - half + tint - shift, middle + half + tint + shift


def _turn(field: np.ndarray, angle: float, columns: int) -> np.ndarray:
    """(ROWS, columns) cut out of a square field turned by `angle`; where it does not reach it is mirrored."""
    side = field.shape[0]
    way = cv2.getRotationMatrix2D((side / 2, side / 2), math.degrees(angle), 1.0)
    way[:, 2] += (columns / 2 - side / 2, ROWS / 2 - side / 2)
    return cv2.warpAffine(field, way, (columns, ROWS), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _noise_of(rng: np.random.Generator, side: int, rows: int, columns: int, octaves: int) -> np.ndarray:
    """(side, side) value noise whose cells need not be square."""
    return cv2.resize(layer_noise(rng, rows, columns, octaves), (side, side), interpolation=cv2.INTER_LINEAR)


def _make_concrete(rng: np.random.Generator, side: int) -> np.ndarray:
    """Clouds, and pores of a pixel or two."""
    clouds = _noise_of(rng, side, 4, 4, 7)
    pores = cv2.resize((rng.random((side // 2, side // 2), np.float32) > 0.985).astype(np.float32), (side, side))
    return clouds + rng.normal(0, 0.06, (side, side)).astype(np.float32) - 0.7 * pores


def _make_wood(rng: np.random.Generator, side: int) -> np.ndarray:
    """Rings cut lengthwise, bent by slow noise, over fine fibres."""
    across = np.linspace(0, rng.uniform(4, 10), side, dtype=np.float32)[:, None]
    bend = _noise_of(rng, side, 4, 2, 3)
    fibres = _noise_of(rng, side, 100, 4, 2)
    return 0.5 + 0.28 * np.sin(2 * math.pi * (across + 1.6 * bend)) + 0.7 * (fibres - 0.5)


def _make_cloth(rng: np.random.Generator, side: int) -> np.ndarray:
    """A weave of threads of uneven thickness, over folds."""
    threads = rng.uniform(40, 70)
    along = np.sin(np.linspace(0, 2 * math.pi * threads, side, dtype=np.float32))
    weave = np.multiply.outer(along, along) * (0.5 + _noise_of(rng, side, 32, 32, 2))
    return 0.15 + 0.7 * _noise_of(rng, side, 3, 3, 4) + 0.3 * weave


def _make_terrazzo(rng: np.random.Generator, side: int) -> np.ndarray:
    """Chips of stone in two sizes, well below the size of an object, in a mottled ground."""
    field = 0.25 + 0.4 * _noise_of(rng, side, 6, 6, 6)
    for rows, share in ((36, 0.7), (70, 0.75)):
        chips = np.clip((_noise_of(rng, side, rows, rows, 1) - share) * 12, 0, 1)
        field += chips * (_noise_of(rng, side, 20, 20, 1) - 0.3)
    return field


def _make_room(rng: np.random.Generator, side: int) -> np.ndarray:
    """A room far behind the focus: large soft patches and nothing else."""
    patches = cv2.resize(layer_noise(rng, 4, 4, 2), (side, side), interpolation=cv2.INTER_CUBIC)
    return 0.5 + 1.3 * (patches - 0.5)


MAKERS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "concrete": _make_concrete,
    "wood": _make_wood,
    "cloth": _make_cloth,
    "terrazzo": _make_terrazzo,
    "room": _make_room,
}
"""Makers of (side, side) float32 blends of a surface's two colours, about 0..1, by its name."""
