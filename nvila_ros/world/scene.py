"""A synthetic world of coloured shapes: the values that describe a scene.

A `Scene` has objects that stand or move along one axis, a background and light. `scene_sampler.py` draws scenes at
random, `rendering.py` renders them, `questions.py` asks about them.

Lengths are relative, so one scene means the same picture at every size: x is a fraction of the frame's width, y of its
height; radii, blur and texture periods are fractions of the height.
"""

import math
from dataclasses import dataclass
from typing import Literal

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

    def is_under_way(self, first_s: float, last_s: float) -> bool:
        """Whether it has begun and not ended at some time of an interval."""
        return self.start_s < last_s and first_s < self.start_s + self.duration_s


@dataclass(frozen=True, slots=True)
class Slide:
    """A way at an even pace, and no way back: dx, dy in frame widths and heights, along one axis."""

    start_s: float
    duration_s: float
    dx: float
    dy: float

    def share(self, t_s: float) -> float:
        """How much of the way the object is off at t_s, 0..1."""
        return min(max((t_s - self.start_s) / self.duration_s, 0.0), 1.0)

    def is_under_way(self, first_s: float, last_s: float) -> bool:
        """Whether it has begun and not ended at some time of an interval."""
        return self.start_s < last_s and first_s < self.start_s + self.duration_s


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
    jump: Jump | Slide | None = None
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
    """A ground: a blend of two colours in a texture, or a photograph.

    Attributes:
        kind: of texture.
        low: RGB of one colour.
        high: RGB of the other.
        period: of the texture, in frame heights; of clutter and photographs the sigma of their blur.
        angle: of the texture, radians.
        seed: of what is random in it.
        photograph: name of a photograph, of the kind that shows one.
        is_shared: whether the second camera shows it too, and no surface of its own.
    """

    kind: str
    low: tuple[int, int, int]
    high: tuple[int, int, int]
    period: float
    angle: float
    seed: int
    photograph: str = ""
    is_shared: bool = False


@dataclass(frozen=True, slots=True)
class Shadow:
    """Soft shadows that objects cast: the way they fall in frame heights, strength 0..1, sigma in frame heights."""

    dx: float
    dy: float
    strength: float
    softness: float


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
    """All of a clip: aspect is width / height, noise in grey levels, blur in frame heights (both sigmas).

    The shadow is the first camera's; the second casts its own.
    """

    objects: tuple[Object, ...]
    background: Background
    light: Light
    noise: float
    blur: float
    aspect: float
    duration_s: float
    seed: int
    shadow: Shadow | None = None

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
CONTOUR_RADII = {shape: float(np.hypot(*contours[0].T).max()) for shape, contours in CONTOURS.items()}
"""Radius of the circle about the centre that holds each shape at size 1."""


def reach(obj: Object) -> float:
    """Radius of the circle about the centre that holds the whole object at any angle, in frame heights."""
    return obj.size * CONTOUR_RADII[obj.shape]


def is_clear(fraction: float) -> bool:
    """Whether a coordinate (fraction of width or height) lies well inside one of the thirds."""
    return abs(abs(fraction - 0.5) - 1 / 6) >= PLACE_MARGIN


def scene_rng(seed: int) -> np.random.Generator:
    """Generator of one scene; training seeds lie below `EVAL_SEED_BASE`, evaluation seeds start there."""
    return np.random.default_rng(seed)
