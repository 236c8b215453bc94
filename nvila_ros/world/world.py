"""A synthetic world of coloured shapes: what there is to see, drawn at random.

In: a `numpy.random.Generator`. Out: a `Scene` of 1 to 4 objects that stand or move along one axis, on a muted
background under changing light. `scenes.py` films it, `questions.py` asks about it.

Lengths are relative, so one scene means the same picture at every size: x is a fraction of the frame's
width, y of its height; radii, blur and texture periods are fractions of the height. For the whole duration
of a scene, in the aspect it was drawn for, objects stay inside the frame and do not touch.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (212, 36, 40),
    "orange": (244, 128, 16),
    "yellow": (242, 222, 36),
    "green": (36, 160, 58),
    "blue": (36, 78, 214),
    "purple": (148, 48, 178),
    "white": (244, 244, 244),
    "black": (20, 20, 22),
}
"""RGB of each colour name before jitter and light."""
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "ring")
"""Names of the shapes; label k + 1 of `patch_labels` is ``SHAPES[k]``."""
EVAL_SEED_BASE = 2**31
"""Seeds from here on are held out: training draws from ``[0, EVAL_SEED_BASE)`` only."""
MAX_OBJECTS = 4
"""Most objects in a scene."""
PLACE_MARGIN = 0.06
"""A place is well defined this far (fraction of width or height) from the borders between thirds."""

Direction = Literal["left", "right", "up", "down", "still"]
DIRECTIONS: dict[Direction, tuple[int, int]] = {
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
    "still": (0, 0),
}
"""Signs of (vx, vy) of each direction; y points down."""

_SIZES = (0.09, 0.19)
GAP = 0.025
"""Least distance between two outlines, fraction of the height."""
MAX_ANGLE = math.radians(20)
"""Objects are turned by at most this."""

_COLOR_JITTER = 10
_CLEAR_SHARE = 0.9  # of the scenes keep all standing objects clear of the borders between places
_LIGHT_PERIOD_S = 5.0
BACKGROUNDS: tuple[str, ...] = ("plain", "gradient", "noise", "stripes", "checker")
"""Textures of the evaluation suites."""


@dataclass(frozen=True, slots=True)
class Jump:
    """A quick way there and back: dx, dy in frame widths and heights, along one axis."""

    start_s: float
    duration_s: float
    dx: float
    dy: float

    def share(self, t_s: float) -> float:
        """How much of the way the object is off at t_s, 0..1: a quarter of the time out, half there, a quarter back."""
        phase = (t_s - self.start_s) / self.duration_s
        return min(max(4 * min(phase, 1 - phase), 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Object:
    """One shape: size is the radius in frame heights, angle in radians.

    x, y is the centre at t = 0 in frame widths and heights, vx, vy its velocity in the same per second. It is to be
    seen from appears_s until vanishes_s.
    """

    shape: str
    color: str
    rgb: tuple[int, int, int]
    size: float
    x: float
    y: float
    vx: float
    vy: float
    angle: float
    appears_s: float = -math.inf
    jump: Jump | None = None
    vanishes_s: float = math.inf

    def position(self, t_s: float) -> tuple[float, float]:
        """Centre (x, y) at t_s, fractions of the width and the height."""
        x, y = self.x + self.vx * t_s, self.y + self.vy * t_s
        if self.jump is None:
            return x, y
        share = self.jump.share(t_s)
        return x + share * self.jump.dx, y + share * self.jump.dy

    def is_visible(self, t_s: float) -> bool:
        """Whether the object is there at t_s."""
        return self.appears_s <= t_s < self.vanishes_s

    @property
    def direction(self) -> Direction:
        """Where the object moves, or "still"; a jump is no moving."""
        return _direction(self.vx, self.vy)

    @property
    def jump_direction(self) -> Direction:
        """Where the object jumps, or "still"."""
        return _direction(self.jump.dx, self.jump.dy) if self.jump else "still"


def _direction(dx: float, dy: float) -> Direction:
    if dx:
        return "left" if dx < 0 else "right"
    if dy:
        return "up" if dy < 0 else "down"
    return "still"


@dataclass(frozen=True, slots=True)
class Background:
    """A muted blend of two greyish colours; period in frame heights, angle in radians."""

    kind: str
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    period: float
    angle: float
    seed: int


@dataclass(frozen=True, slots=True)
class Light:
    """Gain of the picture, warmth (red up, blue down), slow relative drift and its phase in radians."""

    gain: float
    warmth: float
    drift: float
    phase: float

    def gains(self, t_s: float) -> tuple[float, float, float]:
        """Factors of R, G, B at t_s."""
        swing = self.drift * math.sin(2 * math.pi * t_s / _LIGHT_PERIOD_S + self.phase)
        gain = min(max(self.gain * (1 + swing), 0.75), 1.25)
        return gain * (1 + self.warmth), gain, gain * (1 - self.warmth)


@dataclass(frozen=True, slots=True)
class Scene:
    """All of a clip: aspect is width / height, noise in grey levels, blur in frame heights (both sigmas)."""

    objects: tuple[Object, ...]
    background: Background
    light: Light
    noise: float
    blur: float
    aspect: float
    duration_s: float
    seed: int

    @property
    def is_moving(self) -> bool:
        """Whether any object moves."""
        return any(obj.direction != "still" for obj in self.objects)


def _unit_contours() -> dict[str, list[np.ndarray]]:
    """`CONTOURS`, point by point."""

    def ngon(num_points: int, radii: tuple[float, ...]) -> np.ndarray:
        turn = np.arange(num_points) * (2 * np.pi / num_points)
        radius = np.resize(np.array(radii), num_points)
        return np.stack([radius * np.sin(turn), -radius * np.cos(turn)], axis=1)

    a, b = 1.0, 0.34
    cross = [(b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]
    square = [(0.86, -0.86), (0.86, 0.86), (-0.86, 0.86), (-0.86, -0.86)]
    return {
        "circle": [ngon(48, (1.0,))],
        "square": [np.array(square)],
        "triangle": [ngon(3, (1.18,))],
        "star": [ngon(10, (1.18, 0.48))],
        "cross": [np.array([*cross, (-b, -a)])],
        "ring": [ngon(48, (1.0,)), ngon(48, (0.56,))],
    }


CONTOURS = _unit_contours()
"""Contours (n, 2) of each shape about its centre at size 1, y down; a second contour is a hole."""
_EXTENTS = {shape: float(np.hypot(*contours[0].T).max()) for shape, contours in CONTOURS.items()}


def reach(obj: Object) -> float:
    """Radius of the circle about the centre that holds the whole object at any angle, in frame heights."""
    return obj.size * _EXTENTS[obj.shape]


def is_clear(fraction: float) -> bool:
    """Whether a coordinate (fraction of width or height) lies well inside one of the thirds."""
    return abs(abs(fraction - 0.5) - 1 / 6) >= PLACE_MARGIN


def scene_rng(seed: int) -> np.random.Generator:
    """Generator of one scene; training seeds lie below `EVAL_SEED_BASE`, evaluation seeds start there."""
    return np.random.default_rng(seed)


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
    objects = _sample_objects(rng, _Stage(aspect, duration_s, shift), is_moving, num_colors)
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


class _Stage(NamedTuple):
    """What bounds the objects of a scene, as `sample_scene` takes it."""

    aspect: float
    duration_s: float
    shift: tuple[float, float]


class _Wanted(NamedTuple):
    """What an object shall be, before it is known where it fits."""

    color: str
    shape: str
    direction: Direction


def _sample_objects(
    rng: np.random.Generator, stage: _Stage, is_moving: bool, num_colors: int | None
) -> tuple[Object, ...]:
    """Place 1 to 4 objects with distinct (color, shape); what they are never depends on how they fit."""
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    colors, directions = list(COLORS), list(DIRECTIONS)
    if num_colors is not None:
        colors = [colors[k] for k in rng.choice(len(colors), num_colors, replace=False).tolist()]
    pairs = rng.choice(len(colors) * len(SHAPES), count, replace=False).tolist()
    wanted = [
        _Wanted(colors[pair // len(SHAPES)], SHAPES[pair % len(SHAPES)], directions[k] if is_moving else "still")
        for pair, k in zip(pairs, rng.integers(0, len(DIRECTIONS), count).tolist(), strict=True)
    ]
    is_kept_clear = bool(rng.random() < _CLEAR_SHARE)
    for attempt in range(200):
        largest = max(_SIZES[0] + 0.005, _SIZES[1] * 0.96**attempt)  # crowded scenes get smaller objects
        placed = _place(rng, wanted, largest, stage, is_kept_clear)
        if placed is not None:
            return placed
    raise RuntimeError(f"found no place for {count} objects on {stage}")


def _place(
    rng: np.random.Generator, wanted: list[_Wanted], largest: float, stage: _Stage, is_kept_clear: bool
) -> tuple[Object, ...] | None:
    """Find every wanted object a place apart from those before it, in a few tries each, or give up."""
    placed: list[Object] = []
    for want in wanted:
        for numbers in rng.random((8, 8)).tolist():
            obj = _draw_object(numbers, want, largest, stage)
            is_apart = all(_stay_apart(obj, other, stage) for other in placed)
            if is_apart and (not is_kept_clear or _has_clear_place(obj)):
                placed.append(obj)
                break
        else:
            return None
    return tuple(placed)


def _draw_object(numbers: list[float], want: _Wanted, largest: float, stage: _Stage) -> Object:
    """One candidate from eight numbers in 0..1; it stays inside the frame for the whole duration."""
    size01, shift01, x01, y01, angle01, *jitter = numbers
    size = _SIZES[0] + (largest - _SIZES[0]) * size01
    way = stage.shift[0] + (stage.shift[1] - stage.shift[0]) * shift01
    sign_x, sign_y = DIRECTIONS[want.direction]
    margin = size * _EXTENTS[want.shape]
    x, dx = _fit(x01, way * sign_x, margin / stage.aspect)
    y, dy = _fit(y01, way * sign_y, margin)
    speed = 1 / stage.duration_s if stage.duration_s > 0 else 0.0
    angle = MAX_ANGLE * (2 * angle01 - 1)
    rgb = jitter_color(want.color, jitter)
    return Object(want.shape, want.color, rgb, size, x, y, dx * speed, dy * speed, angle)


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


def _stay_apart(a: Object, b: Object, stage: _Stage) -> bool:
    """Whether two objects never come closer than the gap in the whole duration."""
    px, py = (b.x - a.x) * stage.aspect, b.y - a.y
    vx, vy = (b.vx - a.vx) * stage.aspect, b.vy - a.vy
    speed2 = vx * vx + vy * vy
    t_s = min(max(-(px * vx + py * vy) / speed2, 0.0), stage.duration_s) if speed2 else 0.0
    return math.hypot(px + vx * t_s, py + vy * t_s) >= reach(a) + reach(b) + GAP


class LiveWorld:
    """An endless world for a live camera: a new held-out scene every scene_s, by turns still and moving.

    Any process that knows the seed can recompute what a camera saw at a time.
    """

    def __init__(self, seed: int, scene_s: float = 4.0, *, aspect: float = 4 / 3) -> None:
        """Set the world up; nothing is drawn before it is asked for."""
        self.seed, self.scene_s, self.aspect = seed, scene_s, aspect
        self._scene = lru_cache(maxsize=16)(self._sample)

    def _sample(self, index: int) -> Scene:
        rng = np.random.default_rng((EVAL_SEED_BASE + self.seed, index))
        # A window of half the scene still sees a way that training has seen in a whole clip.
        return sample_scene(
            rng, aspect=self.aspect, duration_s=self.scene_s, is_moving=index % 2 == 1, shift=(0.36, 0.6)
        )

    def scene_at(self, t_s: float) -> tuple[int, Scene, float]:
        """Index of the scene shown t_s seconds (>= 0) after the start, the scene, and the time within it."""
        index = int(t_s // self.scene_s)
        return index, self._scene(index), t_s - index * self.scene_s
