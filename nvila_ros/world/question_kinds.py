"""What there is to ask of a scene: the kinds of question, their words, and all true answers a scene has of each.

In: a `Scene`, and the time of a frame or None for a clip of the whole scene. Out: options, each what fills the braces
of a phrasing and the answer.

A question is listed only where its answer is beyond doubt: a colour or a shape names an object only if no other has it,
a place lies away from the borders between the thirds of the frame, and what is compared differs by a margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from nvila_ros.world.scene import (
    COLORS,
    CONTOURS,
    DIRECTIONS,
    MAX_OBJECTS,
    SHAPES,
    Object,
    Scene,
    is_clear,
    reach,
)

PHRASINGS: dict[str, tuple[str, ...]] = {
    "color": (
        "What color is the {}?",
        "What is the color of the {}?",
        "Which color does the {} have?",
    ),
    "shape": (
        "What shape is the {}?",
        "What is the shape of the {}?",
        "Which shape does the {} have?",
    ),
    "count": (
        "How many objects are there?",
        "How many objects do you see?",
        "What is the number of objects?",
    ),
    "exist": ("Is there {}?", "Do you see {}?", "Does the scene contain {}?"),
    "where": ("Where is the {}?", "In which place is the {}?", "Where do you see the {}?"),
    "motion": (
        "Which way is the {} moving?",
        "In which direction does the {} move?",
        "Where does the {} move?",
    ),
    "describe": ("Describe the scene.", "What do you see?", "What is there to see?"),
    "count-color": (
        "How many {} objects are there?",
        "How many {} objects do you see?",
        "What is the number of {} objects?",
    ),
    "relation": ("Is the {} {} the {}?", "Does the {} lie {} the {}?", "Do you see the {} {} the {}?"),
    "size": ("Which is larger, the {} or the {}?", "Which is bigger, the {} or the {}?"),
    "order": ("Which appears first, the {} or the {}?", "Which object appears first?"),
    "vanish": ("Which object vanishes?", "What vanishes?", "Which object disappears?"),
}
"""Ways to ask each kind of question, the canonical one first; the braces take what it is about."""
KINDS: tuple[str, ...] = tuple(PHRASINGS)
"""All kinds of question."""
STILL_KINDS: tuple[str, ...] = ("color", "shape", "count", "count-color", "exist", "where", "relation", "size")
"""Kinds that one frame answers."""
CLIP_KINDS: tuple[str, ...] = ("motion", "order", "vanish")
"""Kinds that only a clip answers."""
PLACES: tuple[str, ...] = (
    "top left",
    "top",
    "top right",
    "left",
    "center",
    "right",
    "bottom left",
    "bottom",
    "bottom right",
)
"""Names of the nine ninths of a frame, row by row."""
RELATIONS: dict[str, tuple[int, int]] = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
"""Axis of each relation and the sign of the first object's coordinate less the second's; y points down."""
MAX_OF_COLOR = 3
"""The most objects of one colour that are counted."""
ANSWERS: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "count": tuple(str(k) for k in range(1, MAX_OBJECTS + 1)),
    "exist": ("yes", "no"),
    "where": PLACES,
    "motion": tuple(DIRECTIONS),
    "count-color": tuple(str(k) for k in range(MAX_OF_COLOR + 1)),
    "relation": ("yes", "no"),
}
"""All answers of each kind with a closed set of them."""
RELATION_MARGIN = 0.12
"""Centres differ by at least this fraction of the width or height where one is said to lie beside the other."""
SIZE_MARGIN = 1.5
"""One area is at least this many times the other where the two are compared."""

Option = tuple[tuple[str, ...], str]
"""What fills the braces of a phrasing, and the answer."""


def place_of(x: float, y: float) -> str:
    """Name of the ninth of the frame that holds a point, in fractions of width and height."""
    column, row = (min(max(int(3 * v), 0), 2) for v in (x, y))
    return PLACES[3 * row + column]


def name_of(obj: Object) -> str:
    """The object's full name, as "red circle"."""
    return f"{obj.color} {obj.shape}"


def with_article(name: str) -> str:
    """The name behind "a" or "an"."""
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def motion_phrase(direction: str) -> str:
    """What a description says of an object's motion."""
    return "standing still" if direction == "still" else f"moving {direction}"


def area_of(obj: Object) -> float:
    """Area within the object's outline, in squared frame heights; a ring's hole counts."""
    x, y = CONTOURS[obj.shape][0].T * obj.size
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def _is_only_color(scene: Scene, color: str) -> bool:
    return [obj.color for obj in scene.objects].count(color) == 1


def _is_only_shape(scene: Scene, shape: str) -> bool:
    return [obj.shape for obj in scene.objects].count(shape) == 1


def _refer(rng: np.random.Generator, scene: Scene, obj: Object) -> str:
    """The object's full name, or its colour or shape alone where that is enough."""
    names = [name_of(obj)]
    if _is_only_color(scene, obj.color):
        names.append(f"{obj.color} object")
    if _is_only_shape(scene, obj.shape):
        names.append(obj.shape)
    return names[int(rng.integers(len(names)))]


def _list_color(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[Option]:
    return [((obj.shape,), obj.color) for obj in scene.objects if _is_only_shape(scene, obj.shape)]


def _list_shape(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[Option]:
    only = [obj for obj in scene.objects if _is_only_color(scene, obj.color)]
    return [((f"{obj.color} object",), obj.shape) for obj in only]


def _list_count(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[Option]:
    return [((), str(len(scene.objects)))]


def _list_exist(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[Option]:
    """As many things that are there as things that are not."""
    options: list[Option] = [((with_article(name_of(obj)),), "yes") for obj in scene.objects]
    absent = {_absent_name(rng, scene) for _ in scene.objects}
    while len(absent) < len(scene.objects):
        absent.add(_absent_name(rng, scene))
    return options + [((with_article(name),), "no") for name in sorted(absent)]


def _absent_name(rng: np.random.Generator, scene: Scene) -> str:
    """Name of a thing that is not there; every other one shares its colour or its shape with one that is."""
    is_hard, keeps_color, kept, first, second = rng.random(5).tolist()
    shared = scene.objects[int(kept * len(scene.objects))]
    if is_hard < 0.5 and keeps_color < 0.5:
        colors = [shared.color]
        shapes = [shape for shape in SHAPES if not _has(scene, shared.color, shape)]
    elif is_hard < 0.5:
        colors = [color for color in COLORS if not _has(scene, color, shared.shape)]
        shapes = [shared.shape]
    else:
        colors = [color for color in COLORS if all(obj.color != color for obj in scene.objects)]
        shapes = [shape for shape in SHAPES if all(obj.shape != shape for obj in scene.objects)]
    return f"{colors[int(first * len(colors))]} {shapes[int(second * len(shapes))]}"


def _has(scene: Scene, color: str, shape: str) -> bool:
    return any(obj.color == color and obj.shape == shape for obj in scene.objects)


def _list_where(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[Option]:
    """Objects well inside a ninth of the frame; in a clip only those that stand."""
    options: list[Option] = []
    for obj in scene.objects:
        x, y = obj.position(t_s or 0.0)
        if (t_s is not None or obj.direction == "still") and is_clear(x) and is_clear(y):
            options.append(((_refer(rng, scene, obj),), place_of(x, y)))
    return options


def _list_motion(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[Option]:
    if t_s is not None or scene.duration_s <= 0:
        return []
    return [((_refer(rng, scene, obj),), obj.direction) for obj in scene.objects]


def _list_describe(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[Option]:
    """The one description: motions if anything moves in the clip, else places if all are beyond doubt."""
    shows_motion = t_s is None and scene.is_moving
    centres = [obj.position(t_s or 0.0) for obj in scene.objects]
    if not shows_motion and not all(is_clear(v) for centre in centres for v in centre):
        return []
    parts = []
    for (x, y), obj in sorted(zip(centres, scene.objects, strict=True), key=lambda pair: pair[0]):
        predicate = motion_phrase(obj.direction) if shows_motion else f"at the {place_of(x, y)}"
        parts.append(f"{with_article(name_of(obj))} {predicate}")
    return [((), ", ".join(parts) + ".")]


def _list_count_color(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[Option]:
    """Each colour that is there, and one that is not."""
    there = [obj.color for obj in scene.objects]
    absent = [color for color in COLORS if color not in there]
    asked = [*dict.fromkeys(there), absent[int(rng.integers(len(absent)))]]
    return [((color,), str(there.count(color))) for color in asked if there.count(color) <= MAX_OF_COLOR]


def _list_relation(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[Option]:
    """Every pair, by each relation that holds or whose opposite does; not of a clip, in which things move."""
    if t_s is None:
        return []
    options: list[Option] = []
    for first, second in _pairs(scene):
        gaps = [b - a for a, b in zip(second.position(t_s), first.position(t_s), strict=True)]
        for relation, (axis, sign) in RELATIONS.items():
            if abs(gaps[axis]) >= RELATION_MARGIN:
                names = _refer(rng, scene, first), relation, _refer(rng, scene, second)
                options.append((names, "yes" if gaps[axis] * sign > 0 else "no"))
    return options


def _list_size(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[Option]:
    """Every pair of which one is larger by its area and by its reach."""
    options: list[Option] = []
    for first, second in _pairs(scene):
        larger, smaller = sorted((first, second), key=area_of, reverse=True)
        if area_of(larger) >= SIZE_MARGIN * area_of(smaller) and reach(larger) > reach(smaller):
            options.append(((name_of(first), name_of(second)), name_of(larger)))
    return options


def _pairs(scene: Scene) -> list[tuple[Object, Object]]:
    return [(a, b) for a in scene.objects for b in scene.objects if a is not b]


def _list_order(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[Option]:
    """The pair that appears, where exactly two do, named in any order."""
    pair = [obj for obj in scene.objects if math.isfinite(obj.appears_s)]
    if t_s is not None or len(pair) != 2:
        return []
    names = [name_of(pair[k]) for k in rng.permutation(2).tolist()]
    return [(tuple(names), name_of(min(pair, key=lambda obj: obj.appears_s)))]


def _list_vanish(rng: np.random.Generator, scene: Scene, t_s: float | None) -> list[Option]:
    """What vanishes, where exactly one thing does."""
    gone = [obj for obj in scene.objects if math.isfinite(obj.vanishes_s)]
    return [((), name_of(gone[0]))] if t_s is None and len(gone) == 1 else []


LISTERS: dict[str, Callable[[np.random.Generator, Scene, float | None], list[Option]]] = {
    "color": _list_color,
    "shape": _list_shape,
    "count": _list_count,
    "exist": _list_exist,
    "where": _list_where,
    "motion": _list_motion,
    "describe": _list_describe,
    "count-color": _list_count_color,
    "relation": _list_relation,
    "size": _list_size,
    "order": _list_order,
    "vanish": _list_vanish,
}
"""What lists the options of each kind."""
