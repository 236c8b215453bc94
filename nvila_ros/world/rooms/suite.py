"""The suite `tiny-world-rooms`: known kinds of questions about what a moving robot's camera sees in a house.

In: a kind and an index. Out: an `EvalCase`, always the same, of houses that training never draws. The truth is read off
the labels of the picture itself: a thing counts from `MIN_SHARE` of the pixels on, and a picture is asked about only
where no thing is in doubt between hidden and seen. Motion is that of things across the picture as the robot turns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from nvila_ros.world.question_kinds import PHRASINGS, PLACES, RELATION_MARGIN, place_of, with_article
from nvila_ros.world.questions import EvalCase, Question
from nvila_ros.world.rooms.camera import RoomCamera, take_picture
from nvila_ros.world.rooms.house import KINDS, ROOM_COLORS, House
from nvila_ros.world.rooms.house_sampler import sample_house
from nvila_ros.world.rooms.instructions import free_place
from nvila_ros.world.scene import EVAL_SEED_BASE, is_clear

ROOM_KINDS = ("color", "shape", "count", "count-color", "exist", "where", "relation", "motion")
MIN_SHARE, HIDDEN_SHARE = 0.0025, 0.0002
"""Of the pixels: from the one on a thing is seen, up to the other it is hidden; between them it is in doubt."""
CLIP_FRAMES, CLIP_S = 8, 2.0
_TURNS = {"left": -0.18, "right": 0.18, "still": 0.0}
"""How fast the robot turns, rad/s, so that things move this way across the picture."""
_SEED = EVAL_SEED_BASE + 5 * 2**28
_LOOKING = RoomCamera(160, 120)


@dataclass(frozen=True, slots=True)
class SeenThing:
    """A thing in the picture: the centre of its pixels as fractions of width and height, and where it moves."""

    color: str
    shape: str
    x: float
    y: float
    direction: str = "still"

    @property
    def name(self) -> str:
        """Colour and kind."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class Ground:
    """What things stand before."""

    kind: str = "room"


@dataclass(frozen=True, slots=True)
class RoomScene:
    """A house from a place, with a robot that turns; turn in rad/s."""

    house: House
    x: float
    y: float
    yaw: float
    turn: float
    objects: tuple[SeenThing, ...]
    background: Ground = Ground()


def render_room(scene: Any, t_s: float, width: int, height: int) -> np.ndarray:
    """Film one frame of a `RoomScene`, (height, width, 3) uint8 RGB."""
    rng = np.random.default_rng((scene.house.seed, round(t_s * 1000)))
    yaw = scene.yaw + scene.turn * t_s
    return take_picture(scene.house, scene.x, scene.y, yaw, RoomCamera(width, height), rng).image


def eval_room_case(kind: str, index: int) -> EvalCase:
    """Case number index of a kind; answers of closed sets take turns."""
    rng = np.random.default_rng((_SEED + index, ROOM_KINDS.index(kind)))
    for _ in range(2000):
        scene = _sample_scene(rng, kind, index)
        question = _ask(rng, kind, scene, index) if scene is not None else None
        if scene is not None and question is not None:
            clip = tuple(CLIP_S * k / (CLIP_FRAMES - 1) for k in range(CLIP_FRAMES))
            return EvalCase(scene, question, clip if kind == "motion" else (0.0,))
    raise RuntimeError(f"found no picture with a question of kind {kind}")


def choices_of_room(question: Question) -> tuple[str, ...]:
    """All answers that a question may have."""
    counts = tuple(str(count) for count in range(6))
    by_kind = {"color": ROOM_COLORS, "shape": KINDS, "count": counts, "count-color": counts, "where": PLACES}
    return by_kind.get(question.kind, ("yes", "no") if question.answer in ("yes", "no") else tuple(_TURNS))


def _sample_scene(rng: np.random.Generator, kind: str, index: int) -> RoomScene | None:
    """Draw a house and a view of it; None where something is in doubt, or nothing is seen."""
    house = _house(int(rng.integers(2**31)))
    x, y = free_place(rng, house, 0)
    yaw = float(rng.uniform(-math.pi, math.pi))
    direction = tuple(_TURNS)[index % len(_TURNS)] if kind == "motion" else "still"
    label_HW = take_picture(house, x, y, yaw, _LOOKING).label_HW
    seen: list[SeenThing] = []
    for k, thing in enumerate(house.things):
        rows, columns = np.nonzero(label_HW == k)
        share = len(rows) / label_HW.size
        if HIDDEN_SHARE < share < MIN_SHARE:
            return None
        if share >= MIN_SHARE:
            at = (columns.mean() + 0.5) / _LOOKING.width, (rows.mean() + 0.5) / _LOOKING.height
            seen.append(SeenThing(thing.color, thing.kind, float(at[0]), float(at[1]), direction))
    return RoomScene(house, x, y, yaw, _TURNS[direction], tuple(seen)) if seen else None


@lru_cache(maxsize=4)
def _house(seed: int) -> House:
    rng = np.random.default_rng((_SEED, seed))
    return sample_house(rng, num_rooms=1, num_things=int(rng.integers(2, 6)))


def _ask(rng: np.random.Generator, kind: str, scene: RoomScene, index: int) -> Question | None:
    """Return a question of a kind with the answer whose turn it is; None where the scene has none."""
    seen = scene.objects
    thing = seen[int(rng.integers(len(seen)))]
    if kind == "color":
        is_only = [each.shape for each in seen].count(thing.shape) == 1
        return _phrase(rng, kind, (thing.shape,), thing.color) if is_only else None
    if kind == "shape":
        is_only = [each.color for each in seen].count(thing.color) == 1
        return _phrase(rng, kind, (f"{thing.color} object",), thing.shape) if is_only else None
    if kind == "count":
        return _phrase(rng, kind, (), str(len(seen))) if len(seen) == 1 + index % 4 else None
    if kind == "count-color":
        return _count_color(rng, seen, index)
    if kind == "exist":
        return _exist(rng, seen, thing, is_there=index % 2 == 0)
    if kind == "where":
        return _phrase(rng, kind, (thing.name,), place_of(thing.x, thing.y)) if is_clear_of_borders(thing) else None
    if kind == "relation":
        return _relation(rng, seen, is_true=index % 2 == 0)
    return _phrase(rng, kind, (thing.name,), thing.direction) if 0.3 < thing.x < 0.7 else None


def is_clear_of_borders(thing: SeenThing) -> bool:
    """Whether a thing lies well inside one of the nine places."""
    return is_clear(thing.x) and is_clear(thing.y)


def _count_color(rng: np.random.Generator, seen: tuple[SeenThing, ...], index: int) -> Question | None:
    wanted = index % 3
    counts = {color: [each.color for each in seen].count(color) for color in ROOM_COLORS}
    fitting = [color for color, count in counts.items() if count == wanted]
    return _phrase(rng, "count-color", (str(rng.choice(fitting)),), str(wanted)) if fitting else None


def _exist(
    rng: np.random.Generator, seen: tuple[SeenThing, ...], thing: SeenThing, *, is_there: bool
) -> Question | None:
    name = thing.name if is_there else f"{rng.choice(ROOM_COLORS)} {rng.choice(KINDS)}"
    if not is_there and name in {each.name for each in seen}:
        return None
    return _phrase(rng, "exist", (with_article(name),), "yes" if is_there else "no")


def _relation(rng: np.random.Generator, seen: tuple[SeenThing, ...], *, is_true: bool) -> Question | None:
    if len(seen) < 2:
        return None
    first, second = (seen[k] for k in rng.permutation(len(seen))[:2])
    gap = first.x - second.x
    if abs(gap) < RELATION_MARGIN:
        return None
    true, false = ("left of", "right of") if gap < 0 else ("right of", "left of")
    names = first.name, true if is_true else false, second.name
    return _phrase(rng, "relation", names, "yes" if is_true else "no")


def _phrase(rng: np.random.Generator, kind: str, subjects: tuple[str, ...], answer: str) -> Question:
    phrasings = PHRASINGS[kind]
    return Question(kind, phrasings[int(rng.integers(len(phrasings)))].format(*subjects), answer)
