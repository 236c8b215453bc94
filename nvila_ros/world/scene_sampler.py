"""Random scenes of the synthetic world: what is there, where it fits, and the look around it.

For the whole duration of a scene, in the aspect that it was drawn for, objects stay inside the frame and do not touch.
"""

import math
from typing import NamedTuple

import numpy as np

from nvila_ros.world.scene import (
    BACKGROUNDS,
    COLORS,
    CONTOUR_RADII,
    DIRECTIONS,
    MAX_OBJECTS,
    SHAPES,
    Background,
    Direction,
    Light,
    Object,
    Scene,
    is_clear,
    reach,
)

GAP = 0.025
"""Least distance between two outlines, fraction of the height."""
MAX_ANGLE = math.radians(20)
"""Objects are turned by at most this."""

_SIZES = (0.09, 0.19)
_COLOR_JITTER = 10
_CLEAR_SHARE = 0.9  # of the scenes keep all standing objects clear of the borders between places


class PlacementLimits(NamedTuple):
    """What bounds the objects of a scene.

    Attributes:
        aspect: width / height of the frame.
        duration_s: how long objects stay inside the frame and apart.
        shift: least and greatest way of a moving object over duration_s, fractions of width or height.
        sizes: least and greatest radius, in frame heights.
        max_angle: objects are turned by at most this, radians.
        overlap: how far two objects may lie over each other, as a share of the smaller one's radius.
    """

    aspect: float
    duration_s: float
    shift: tuple[float, float]
    sizes: tuple[float, float] = _SIZES
    max_angle: float = MAX_ANGLE
    overlap: float = 0.0


class ObjectSpec(NamedTuple):
    """What an object is, before it is known where it fits."""

    color: str
    shape: str
    direction: Direction


def sample_scene(
    rng: np.random.Generator,
    *,
    aspect: float,
    duration_s: float,
    is_moving: bool | None,
    shift: tuple[float, float] = (0.18, 0.5),
    num_colors: int | None = None,
    backgrounds: tuple[str, ...] = BACKGROUNDS,
) -> Scene:
    """Draw a scene.

    Args:
        rng: source of all randomness.
        aspect: width / height of the camera, 0.5 to 3.
        duration_s: how long objects must stay inside the frame and apart; 0 for a single frame.
        is_moving: True draws each object's direction evenly over left, right, up, down and still; False lets
            all stand; None tosses a coin. A scene of one object drawn with True may thus stand still too.
        shift: least and greatest way of a moving object over duration_s, fractions of width or height.
        num_colors: that the objects share; None gives each any.
        backgrounds: kinds of texture to draw from.

    Raises:
        ValueError: aspect out of range, or motion asked for without a duration.
    """
    if not 0.5 <= aspect <= 3:
        raise ValueError(f"aspect must be in 0.5..3, got {aspect}")
    if is_moving and duration_s <= 0:
        raise ValueError(f"a moving scene needs duration_s > 0, got {duration_s}")
    is_moving = bool(rng.random() < 0.5) and duration_s > 0 if is_moving is None else is_moving
    objects = _sample_objects(rng, PlacementLimits(aspect, duration_s, shift), is_moving, num_colors)
    return dress_scene(rng, objects, aspect=aspect, duration_s=duration_s, backgrounds=backgrounds)


def dress_scene(
    rng: np.random.Generator,
    objects: tuple[Object, ...],
    *,
    aspect: float,
    duration_s: float,
    backgrounds: tuple[str, ...] = BACKGROUNDS,
) -> Scene:
    """Draw what is around the objects: background, light and camera."""
    gain, warmth, drift, phase, noise, blur, *look = rng.random(12).tolist()
    seed = int(rng.integers(2**31))
    light = Light(0.75 + 0.5 * gain, 0.12 * warmth - 0.06, 0.1 * drift, 2 * math.pi * phase)
    background = _sample_background(look, seed, backgrounds)
    # Squares: most cameras are clean and sharp, the worst ones stay rare.
    return Scene(objects, background, light, 10 * noise * noise, 0.01 * blur * blur, aspect, duration_s, seed)


def _sample_background(look: list[float], seed: int, kinds: tuple[str, ...]) -> Background:
    """Two greyish colours with luminance in 60..175 and a texture, from six numbers in 0..1."""
    kind, level, contrast, period, angle, tint = look
    middle, half = 90 + 48 * level, 6 + 19 * contrast
    hue = 2 * math.pi * tint
    tints = [10 * math.cos(hue + k * 2 * math.pi / 3) for k in range(3)]
    red, green, blue = (round(middle + half + t) for t in tints)
    dark_red, dark_green, dark_blue = (round(middle - half - t) for t in tints)
    name = kinds[int(kind * len(kinds))]
    low, high = (dark_red, dark_green, dark_blue), (red, green, blue)
    return Background(name, low, high, 0.1 + 0.3 * period, 2 * math.pi * angle, seed)


def _sample_objects(
    rng: np.random.Generator, limits: PlacementLimits, is_moving: bool, num_colors: int | None
) -> tuple[Object, ...]:
    """Place 1 to 4 objects with distinct (color, shape); what they are never depends on how they fit."""
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    colors, directions = list(COLORS), list(DIRECTIONS)
    if num_colors is not None:
        colors = [colors[k] for k in rng.choice(len(colors), num_colors, replace=False).tolist()]
    pairs = rng.choice(len(colors) * len(SHAPES), count, replace=False).tolist()
    specs = [
        ObjectSpec(colors[pair // len(SHAPES)], SHAPES[pair % len(SHAPES)], directions[k] if is_moving else "still")
        for pair, k in zip(pairs, rng.integers(0, len(DIRECTIONS), count).tolist(), strict=True)
    ]
    is_kept_clear = bool(rng.random() < _CLEAR_SHARE)
    for attempt in range(200):
        largest = max(_SIZES[0] + 0.005, _SIZES[1] * 0.96**attempt)  # crowded scenes get smaller objects
        placed = _place(rng, specs, largest, limits, is_kept_clear)
        if placed is not None:
            return placed
    raise RuntimeError(f"found no place for {count} objects on {limits}")


def _place(
    rng: np.random.Generator, specs: list[ObjectSpec], largest: float, limits: PlacementLimits, is_kept_clear: bool
) -> tuple[Object, ...] | None:
    """Find every object a place apart from those before it, in a few tries each, or give up."""
    placed: list[Object] = []
    for spec in specs:
        for numbers in rng.random((8, 8)).tolist():
            obj = draw_object(numbers, spec, largest, limits)
            is_apart = all(stay_apart(obj, other, limits) for other in placed)
            if is_apart and (not is_kept_clear or _has_clear_place(obj)):
                placed.append(obj)
                break
        else:
            return None
    return tuple(placed)


def draw_object(numbers: list[float], spec: ObjectSpec, largest: float, limits: PlacementLimits) -> Object:
    """One candidate from eight numbers in 0..1; it stays inside the frame for the whole duration."""
    size01, shift01, x01, y01, angle01, *jitter = numbers
    size = limits.sizes[0] + (largest - limits.sizes[0]) * size01
    way = limits.shift[0] + (limits.shift[1] - limits.shift[0]) * shift01
    sign_x, sign_y = DIRECTIONS[spec.direction]
    margin = size * CONTOUR_RADII[spec.shape]
    x, dx = _fit(x01, way * sign_x, margin / limits.aspect)
    y, dy = _fit(y01, way * sign_y, margin)
    speed = 1 / limits.duration_s if limits.duration_s > 0 else 0.0
    angle = limits.max_angle * (2 * angle01 - 1)
    rgb = jitter_color(spec.color, jitter)
    return Object(spec.shape, spec.color, rgb, size, x, y, dx * speed, dy * speed, angle)


def jitter_color(color: str, numbers: list[float]) -> tuple[int, int, int]:
    """RGB of a thing of that colour, from three numbers in 0..1."""
    red, green, blue = (
        min(max(round(c + _COLOR_JITTER * (2 * j - 1)), 0), 255) for c, j in zip(COLORS[color], numbers, strict=True)
    )
    return red, green, blue


def _fit(start01: float, way: float, margin: float) -> tuple[float, float]:
    """Start and way along one axis such that both ends keep the margin to the frame's edges."""
    room = 1 - 2 * margin
    way = math.copysign(min(abs(way), 0.98 * room), way) if way else 0.0
    return margin + max(-way, 0.0) + (room - abs(way)) * start01, way


def _has_clear_place(obj: Object) -> bool:
    """True of moving objects, whose place is never asked of a clip, and of those well inside a third."""
    return obj.direction != "still" or (is_clear(obj.x) and is_clear(obj.y))


def stay_apart(a: Object, b: Object, limits: PlacementLimits) -> bool:
    """Whether two objects keep the gap, or overlap by no more than allowed, in the whole duration."""
    px, py = (b.x - a.x) * limits.aspect, b.y - a.y
    vx, vy = (b.vx - a.vx) * limits.aspect, b.vy - a.vy
    speed2 = vx * vx + vy * vy
    t_s = min(max(-(px * vx + py * vy) / speed2, 0.0), limits.duration_s) if speed2 else 0.0
    least = GAP - limits.overlap * min(reach(a), reach(b))
    return math.hypot(px + vx * t_s, py + vy * t_s) >= reach(a) + reach(b) + least
