"""Scenes that few tokens cannot show: objects too small for one tile, events too quick for few frames.

In: a `numpy.random.Generator`. Out: a `Scene`. A small scene holds 1 to `MAX_SMALL` objects a fraction as large as the
world's usual ones. In an event scene two objects appear a short time apart, and others jump, which is to go
somewhere quickly and come back, or stand. Objects stay inside the frame and apart wherever they are.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from nvila_ros.world.scene import (
    COLORS,
    DIRECTIONS,
    SHAPES,
    Jump,
    Object,
    Scene,
    reach,
)
from nvila_ros.world.scene_sampler import (
    GAP,
    MAX_ANGLE,
    dress_scene,
    jitter_color,
)

MAX_SMALL = 5
"""Most objects in a small scene: at least one shape is always absent, so that it can be asked for."""
PAIR_SHARE = 0.7
"""Share of the event scenes in which two objects appear."""
QUICK_GAPS = (0.05, 0.1)
"""Time between the two appearances, fraction of the clip: less than what 8 frames are apart."""
QUICK_JUMPS = (0.08, 0.14)
"""Time of a whole jump, fraction of the clip."""

_SMALL_SIZES = (0.035, 0.055)  # 8 to 12 px across in a tile of 112 px
_EVENT_SIZES = (0.1, 0.17)
_JUMP_WAYS = (0.25, 0.4)  # fractions of the width or height: further than a visual token is wide
_SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # points of a way where objects are held apart
_EDGE = 0.05  # of the clip, at either end, without events


class _JumpSpec(NamedTuple):
    """What an object shall be, before it is known where it fits; dx, dy is how far it will jump."""

    color: str
    shape: str
    dx: float = 0.0
    dy: float = 0.0


def sample_small_scene(rng: np.random.Generator, *, aspect: float) -> Scene:
    """Draw a still scene of 1 to `MAX_SMALL` small objects."""
    specs = _draw_specs(rng, int(rng.integers(1, MAX_SMALL + 1)))
    return dress_scene(rng, _place_all(rng, specs, _SMALL_SIZES, aspect), aspect=aspect, duration_s=0.0)


def sample_event_scene(
    rng: np.random.Generator,
    *,
    aspect: float,
    duration_s: float,
    has_pair: bool | None = None,
    gaps: tuple[float, float] = QUICK_GAPS,
    jumps: tuple[float, float] = QUICK_JUMPS,
) -> Scene:
    """Draw a scene of events.

    Args:
        rng: source of all randomness.
        aspect: width / height of the camera.
        duration_s: of the clip.
        has_pair: True lets two objects appear, beside up to two others; False draws one to three others alone; None
            draws which. The others jump to one of four sides or stand, all five evenly.
        gaps: least and greatest time between the two appearances, fractions of duration_s.
        jumps: least and greatest time of a jump, fractions of duration_s.
    """
    has_pair = bool(rng.random() < PAIR_SHARE) if has_pair is None else has_pair
    num_others = int(rng.integers(0, 3)) if has_pair else int(rng.integers(1, 4))
    num_pair = 2 if has_pair else 0
    specs = _draw_specs(rng, num_pair + num_others)
    specs[num_pair:] = [_with_way(rng, each) for each in specs[num_pair:]]
    placed = _place_all(rng, specs, _EVENT_SIZES, aspect)
    pair = _draw_pair(rng, placed[:num_pair], duration_s, gaps) if has_pair else []
    others = [
        _draw_jump(rng, obj, spec, duration_s, jumps)
        for obj, spec in zip(placed[num_pair:], specs[num_pair:], strict=True)
    ]
    objects = [*pair, *others]
    order = rng.permutation(len(objects)).tolist()
    return dress_scene(rng, tuple(objects[k] for k in order), aspect=aspect, duration_s=duration_s)


def sample_appearing_scene(
    rng: np.random.Generator, *, aspect: float, duration_s: float, num_frames: int, least: int = 2
) -> Scene:
    """Draw a scene of least to 4 standing objects: two appear, one vanishes, or both, visibly in num_frames frames.

    Frames lie evenly from 0 to duration_s. One at least lies between the two appearances, two before anything vanishes
    and two after; what vanishes was there from the beginning.
    """
    has_pair, has_gone = ((True, False), (False, True), (True, True))[int(rng.integers(3))]
    num_events = 2 * has_pair + has_gone
    count = int(rng.integers(max(num_events, least), 5))
    step = 1 / (num_frames - 1)
    placed = list(_place_all(rng, _draw_specs(rng, count), _EVENT_SIZES, aspect))
    if has_pair:
        placed[:2] = _draw_pair(rng, tuple(placed[:2]), duration_s, (1.1 * step, 0.5))
    if has_gone:
        vanishes = float(rng.uniform(1.1 * step, 1 - 1.1 * step))
        placed[-1] = replace(placed[-1], vanishes_s=vanishes * duration_s)
    order = rng.permutation(count).tolist()
    return dress_scene(rng, tuple(placed[k] for k in order), aspect=aspect, duration_s=duration_s)


def draw_way(rng: np.random.Generator) -> tuple[float, float]:
    """Draw how far something goes, to one of four sides, in frame widths and heights."""
    sides = [sign for sign in DIRECTIONS.values() if any(sign)]
    sign_x, sign_y = sides[int(rng.integers(len(sides)))]
    way = float(rng.uniform(*_JUMP_WAYS))
    return way * sign_x, way * sign_y


def draw_apart(rng: np.random.Generator, ways: list[tuple[float, float]], aspect: float) -> tuple[Object, ...] | None:
    """Draw a thing for each way, of distinct (color, shape), which stay in the frame and apart wherever on their ways.

    They stand where their ways begin. Ways that cross may find no place: None.
    """
    specs = [each._replace(dx=dx, dy=dy) for each, (dx, dy) in zip(_draw_specs(rng, len(ways)), ways, strict=True)]
    return _find_places(rng, specs, _EVENT_SIZES, aspect)


def _draw_specs(rng: np.random.Generator, count: int) -> list[_JumpSpec]:
    colors = list(COLORS)
    pairs = rng.choice(len(COLORS) * len(SHAPES), count, replace=False).tolist()
    return [_JumpSpec(colors[pair // len(SHAPES)], SHAPES[pair % len(SHAPES)]) for pair in pairs]


def _with_way(rng: np.random.Generator, spec: _JumpSpec) -> _JumpSpec:
    sign_x, sign_y = list(DIRECTIONS.values())[int(rng.integers(len(DIRECTIONS)))]
    way = float(rng.uniform(*_JUMP_WAYS))
    return spec._replace(dx=way * sign_x, dy=way * sign_y)


def _draw_pair(
    rng: np.random.Generator, placed: tuple[Object, ...], duration_s: float, gaps: tuple[float, float]
) -> list[Object]:
    """Let both appear, one after the other."""
    gap = float(rng.uniform(*gaps))
    start = float(rng.uniform(_EDGE, 1 - _EDGE - gap))
    times_s = start * duration_s, (start + gap) * duration_s
    return [replace(obj, appears_s=t_s) for obj, t_s in zip(placed, times_s, strict=True)]


def _draw_jump(
    rng: np.random.Generator, obj: Object, spec: _JumpSpec, duration_s: float, jumps: tuple[float, float]
) -> Object:
    length = float(rng.uniform(*jumps))
    start = float(rng.uniform(_EDGE, 1 - _EDGE - length))
    if not (spec.dx or spec.dy):
        return obj
    return replace(obj, jump=Jump(start * duration_s, length * duration_s, spec.dx, spec.dy))


def _place_all(
    rng: np.random.Generator, specs: list[_JumpSpec], sizes: tuple[float, float], aspect: float
) -> tuple[Object, ...]:
    placed = _find_places(rng, specs, sizes, aspect)
    if placed is None:
        raise RuntimeError(f"found no place for {specs}")
    return placed


def _find_places(
    rng: np.random.Generator, specs: list[_JumpSpec], sizes: tuple[float, float], aspect: float
) -> tuple[Object, ...] | None:
    for attempt in range(200):
        largest = sizes[0] + (sizes[1] - sizes[0]) * 0.96**attempt  # crowded scenes get smaller objects
        placed = _place(rng, specs, (sizes[0], largest), aspect)
        if placed is not None:
            return placed
    return None


def _place(
    rng: np.random.Generator, specs: list[_JumpSpec], sizes: tuple[float, float], aspect: float
) -> tuple[Object, ...] | None:
    """Find every object a place apart from those before it, in a few tries each, or give up."""
    placed: list[Object] = []
    for spec in specs:
        for numbers in rng.random((8, 7)).tolist():
            obj = _draw_object(numbers, spec, sizes, aspect)
            others = zip(placed, specs, strict=False)  # as many as are placed
            if all(_are_apart(obj, spec, other, other_spec, aspect) for other, other_spec in others):
                placed.append(obj)
                break
        else:
            return None
    return tuple(placed)


def _draw_object(numbers: list[float], spec: _JumpSpec, sizes: tuple[float, float], aspect: float) -> Object:
    """One standing candidate from seven numbers in 0..1, inside the frame at both ends of its way."""
    size01, x01, y01, angle01, *jitter = numbers
    size = sizes[0] + (sizes[1] - sizes[0]) * size01
    angle = MAX_ANGLE * (2 * angle01 - 1)
    rgb = jitter_color(spec.color, jitter)
    obj = Object(spec.shape, spec.color, rgb, size, 0.0, 0.0, 0.0, 0.0, angle)
    return replace(obj, x=_fit(x01, spec.dx, reach(obj) / aspect), y=_fit(y01, spec.dy, reach(obj)))


def _fit(start01: float, way: float, margin: float) -> float:
    """Start along one axis such that both ends keep the margin to the frame's edges."""
    low, high = margin + max(-way, 0.0), 1 - margin - max(way, 0.0)
    return low + (high - low) * start01


def _are_apart(a: Object, a_spec: _JumpSpec, b: Object, b_spec: _JumpSpec, aspect: float) -> bool:
    """Whether two objects keep the gap wherever on their ways each of them is."""
    distances = [
        math.hypot((a.x + s * a_spec.dx - b.x - t * b_spec.dx) * aspect, a.y + s * a_spec.dy - b.y - t * b_spec.dy)
        for s in _SHARES
        for t in _SHARES
    ]
    return min(distances) >= reach(a) + reach(b) + GAP
