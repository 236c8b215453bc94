"""Where the things are that a question names: dense labels for the decoder.

What lies above what is learned from answers alone; what lies beside what stays at chance for half a million questions,
since rows follow from the order of visual tokens and columns do not. Labelled with the place of each thing at the word
that names it, the decoder learns what it must compare.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from nvila_ros.world.question_kinds import name_of
from nvila_ros.world.scene import SHAPES, Object, Scene

NUM_BINS = 14
"""Classes of a coordinate: the width or height of a frame in as many parts."""
_NAME = re.compile(rf"the ((?:\w+ )?(?:object|{'|'.join(SHAPES)}))\b")


class Place(NamedTuple):
    """The end of a name in its text, in characters, and the bins of the thing's centre."""

    end: int
    column: int
    row: int


def name_places(scene: Scene, text: str, t_s: float) -> tuple[Place, ...]:
    """Return the places of what a text about the frame at t_s names, if only one thing bears the name."""
    bearers: dict[str, Object | None] = {}
    for obj in scene.objects:
        for name in (name_of(obj), f"{obj.color} object", obj.shape):
            bearers[name] = None if name in bearers else obj
    places = []
    for found in _NAME.finditer(text):
        bearer = bearers.get(found[1])
        if bearer is not None:
            column, row = (min(max(int(v * NUM_BINS), 0), NUM_BINS - 1) for v in bearer.position(t_s))
            places.append(Place(found.end(), column, row))
    return tuple(places)
