"""Wide scenes: no, one or up to six things of almost any size, at any angle, on any ground, in part over each other.

In: a `numpy.random.Generator` and a `Look`, which says how wide. Out: a `Scene` for either camera. `redress` gives a
scene that another module drew a new look. Things stand out from the ground below them: a white thing is never put
where the ground is white.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from nvila_ros.world.grounds import CLUTTER, PHOTOGRAPH, TONES, draw_tone
from nvila_ros.world.rendering import render_background
from nvila_ros.world.scene import (
    COLORS,
    CONTOUR_RADII,
    SHAPES,
    Background,
    Light,
    Object,
    Scene,
    Shadow,
    is_clear,
)
from nvila_ros.world.scene_sampler import ObjectSpec, PlacementLimits, draw_object, stay_apart

MAX_WIDE_OBJECTS = 6
"""Most objects in a wide scene."""
MAX_OVERLAP = 0.55
"""Of the smaller one's radius, how far two things may lie over each other: at most a third of either is hidden."""
PATTERNS: tuple[str, ...] = (
    *("plain", "plain", "gradient", "gradient", "noise", "stripes", "checker", "clouds"),
    *(CLUTTER, CLUTTER, CLUTTER),
)
"""Kinds of drawn grounds, drawn from evenly."""
_LEAST_CONTRAST = 60.0  # distance in RGB levels between a thing and the ground around it
_MOST_LIKE = 0.25  # share of the ground under a thing that may be as like it as that
_PROBE_ROWS = 36
_SHIFT = (0.18, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How wide scenes are.

    Attributes:
        heights: least and greatest size of a thing across, fractions of the frame's height.
        counts: numbers of things, drawn from evenly.
        max_angle: things are turned by at most this, radians.
        tones: of drawn grounds, drawn from evenly.
        photographs: names of photographs, drawn from evenly.
        photograph_share: share of the scenes whose ground is a photograph.
        softness: least and greatest sigma of a photograph's blur, in frame heights.
        overlap_share: share of the scenes in which things may lie over each other.
        shadow_share: share of the scenes with shadows.
    """

    heights: tuple[float, float] = (0.08, 0.6)
    counts: tuple[int, ...] = tuple(range(MAX_WIDE_OBJECTS + 1))
    max_angle: float = math.pi
    tones: tuple[str, ...] = TONES
    photographs: tuple[str, ...] = ()
    photograph_share: float = 0.0
    softness: tuple[float, float] = (0.0, 0.03)
    overlap_share: float = 0.3
    shadow_share: float = 0.4


def sample_wide_scene(rng: np.random.Generator, look: Look, *, aspect: float, num_colors: int | None = None) -> Scene:
    """Draw a still scene.

    Args:
        rng: source of all randomness.
        look: how wide it is.
        aspect: width / height of the camera.
        num_colors: that the things share; None gives each any.
    """
    count = look.counts[int(rng.integers(len(look.counts)))]
    scene = _dress(rng, look, aspect=aspect, duration_s=0.0)
    return replace(scene, objects=_place_all(rng, look, scene, count, num_colors)) if count else scene


def redress(rng: np.random.Generator, look: Look, scene: Scene) -> Scene:
    """Give the objects of a scene a ground, a light and a camera of a wide look, and turn those any way."""
    turned = tuple(
        replace(obj, angle=float(rng.uniform(-look.max_angle, look.max_angle))) if obj.direction == "still" else obj
        for obj in scene.objects
    )
    while True:
        dressed = _dress(rng, look, aspect=scene.aspect, duration_s=scene.duration_s)
        probe = _probe(dressed)
        if all(_stands_out(obj, probe, scene.aspect, scene.duration_s) for obj in turned):
            return replace(dressed, objects=turned)


def _dress(rng: np.random.Generator, look: Look, *, aspect: float, duration_s: float) -> Scene:
    """Draw an empty scene: ground, light and camera."""
    gain, warmth, drift, phase, noise, blur = rng.random(6).tolist()
    light = Light(0.75 + 0.5 * gain, 0.12 * warmth - 0.06, 0.1 * drift, 2 * math.pi * phase)
    seed = int(rng.integers(2**31))
    shadow = _draw_shadow(rng) if rng.random() < look.shadow_share else None
    ground = _draw_ground(rng, look)
    return Scene((), ground, light, 10 * noise * noise, 0.01 * blur * blur, aspect, duration_s, seed, shadow)


def _draw_shadow(rng: np.random.Generator) -> Shadow:
    turn, length, strength, softness = rng.random(4).tolist()
    turn, length = 2 * math.pi * turn, 0.004 + 0.02 * length
    return Shadow(length * math.cos(turn), length * math.sin(turn), 0.15 + 0.4 * strength, 0.002 + 0.015 * softness)


def _draw_ground(rng: np.random.Generator, look: Look) -> Background:
    seed = int(rng.integers(2**31))
    if rng.random() < look.photograph_share:
        name = look.photographs[int(rng.integers(len(look.photographs)))]
        blur = look.softness[0] + (look.softness[1] - look.softness[0]) * float(rng.random()) ** 2
        return Background(PHOTOGRAPH, (0, 0, 0), (0, 0, 0), blur, 0.0, seed, name, is_shared=True)
    kind = PATTERNS[int(rng.integers(len(PATTERNS)))]
    low, high = draw_tone(rng, look.tones[int(rng.integers(len(look.tones)))])
    period, angle = rng.random(2).tolist()
    period = 0.02 * period * period if kind == CLUTTER else 0.08 + 0.32 * period
    return Background(kind, low, high, period, 2 * math.pi * angle, seed, is_shared=True)


def _place_all(
    rng: np.random.Generator, look: Look, scene: Scene, count: int, num_colors: int | None
) -> tuple[Object, ...]:
    """Place objects with distinct (color, shape); the more often that fails, the smaller they are."""
    probe = _probe(scene)
    overlap = MAX_OVERLAP if rng.random() < look.overlap_share else 0.0
    is_kept_clear = bool(rng.random() < 0.5)
    for attempt in range(400):
        specs = _draw_specs(rng, count, num_colors)
        largest = look.heights[0] + (look.heights[1] - look.heights[0]) * 0.97**attempt
        placed: list[Object] = []
        for spec in specs:
            obj = _place(rng, look, spec, largest, scene, overlap, is_kept_clear, placed, probe)
            if obj is None:
                break
            placed.append(obj)
        if len(placed) == count:
            return tuple(placed)
    raise RuntimeError(f"found no place for {count} objects of {look} on {scene.background}")


def _draw_specs(rng: np.random.Generator, count: int, num_colors: int | None) -> list[ObjectSpec]:
    colors = list(COLORS)
    if num_colors is not None:
        colors = [colors[k] for k in rng.choice(len(colors), num_colors, replace=False).tolist()]
    pairs = rng.choice(len(colors) * len(SHAPES), min(count, len(colors) * len(SHAPES)), replace=False).tolist()
    return [ObjectSpec(colors[pair // len(SHAPES)], SHAPES[pair % len(SHAPES)], "still") for pair in pairs]


def _place(
    rng: np.random.Generator,
    look: Look,
    spec: ObjectSpec,
    largest: float,
    scene: Scene,
    overlap: float,
    is_kept_clear: bool,
    placed: list[Object],
    probe: np.ndarray,
) -> Object | None:
    """Return the object where it fits and stands out from the ground, or None after a few tries."""
    for numbers in rng.random((8, 8)).tolist():
        # Even in the logarithm, so that small things are as many as large ones.
        height = look.heights[0] * (largest / look.heights[0]) ** numbers[0]
        size = height / 2 / CONTOUR_RADII[spec.shape]
        limits = PlacementLimits(scene.aspect, 0.0, _SHIFT, (size, size), look.max_angle, overlap)
        obj = draw_object(numbers, spec, size, limits)
        is_apart = all(stay_apart(obj, other, limits) for other in placed)
        is_placed_well = not is_kept_clear or (is_clear(obj.x) and is_clear(obj.y))
        if is_apart and is_placed_well and _stands_out(obj, probe, scene.aspect, 0.0):
            return obj
    return None


def _probe(scene: Scene) -> np.ndarray:
    """The ground in few pixels, (rows, columns, 3) float32 levels."""
    width = round(_PROBE_ROWS * scene.aspect)
    return render_background(scene.background, scene.aspect, width, _PROBE_ROWS).astype(np.float32)


def _stands_out(obj: Object, probe: np.ndarray, aspect: float, duration_s: float) -> bool:
    """Whether the ground around the object differs from it, wherever it is within the scene."""
    rows, columns = probe.shape[:2]
    reach_y = obj.size * CONTOUR_RADII[obj.shape] * 1.1
    for t_s in (0.0, duration_s / 2, duration_s) if obj.direction != "still" else (0.0,):
        x, y = obj.position(t_s)
        top, bottom = (int((y - reach_y) * rows), math.ceil((y + reach_y) * rows))
        left, right = (int((x - reach_y / aspect) * columns), math.ceil((x + reach_y / aspect) * columns))
        part = probe[max(top, 0) : bottom, max(left, 0) : right].reshape(-1, 3)
        distance = np.linalg.norm(part - np.array(obj.rgb, np.float32), axis=1)
        if (distance < _LEAST_CONTRAST).mean() > _MOST_LIKE:
            return False
    return True
