"""Random houses: rooms, doorways, furniture and things, so that a robot can reach everything."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from nvila_ros.world.rooms.house import (
    KINDS,
    ROOM_COLORS,
    WALL_M,
    Doorway,
    Finish,
    Furniture,
    House,
    Rect,
    Thing,
    furniture_distance,
    rect_distance,
    thing_distance,
)
from nvila_ros.world.scene import COLORS, Light

PASSAGE_M = 0.65
"""Free width between any two obstacles: what a robot of 0.4 m needs, and a margin."""
_DOOR_CLEAR_M = 1.0
_GROUNDS = ((222, 214, 198), (196, 204, 210), (206, 190, 174), (178, 186, 176), (214, 214, 214), (188, 180, 196))
_FLOORS = ((132, 112, 92), (110, 110, 112), (150, 138, 120), (92, 84, 78), (126, 130, 136))
_WOODS = ((112, 82, 58), (84, 70, 60), (140, 118, 92), (98, 98, 100), (66, 62, 60))


def sample_house(rng: np.random.Generator, *, num_rooms: int, num_things: int, same_color_share: float = 0.35) -> House:
    """Draw a house.

    Args:
        rng: source of all randomness.
        num_rooms: 1 to 3.
        num_things: in all rooms together; no two share both colour and kind.
        same_color_share: of the things that share a colour with another one.
    """
    rooms = _sample_rooms(rng, num_rooms)
    doorways = tuple(_sample_doorway(rng, k, rooms[k], rooms[k + 1]) for k in range(num_rooms - 1))
    names = _sample_names(rng, num_things, same_color_share)
    site = _Site(rooms, doorways)
    for k, (color, kind) in enumerate(names):
        _place(rng, site, partial(_thing, rng, color, kind), k)
    for k in range(int(rng.integers(0, num_rooms + 2))):
        _place(rng, site, partial(_furniture, rng), k)
    angle, height = rng.uniform(0, 2 * math.pi), rng.uniform(0.4, 0.9)
    flat = math.sqrt(1 - height**2)
    return House(
        rooms=rooms,
        walls=_walls(rooms, doorways),
        doorways=doorways,
        things=tuple(site.things),
        furniture=tuple(site.furniture),
        finish=_sample_finish(rng, num_rooms),
        light=Light(float(rng.uniform(0.8, 1.15)), float(rng.uniform(-0.06, 0.06)), 0.0, 0.0),
        sun=(flat * math.cos(angle), flat * math.sin(angle), height),
        noise=float(rng.uniform(1, 5)),
        seed=int(rng.integers(2**31)),
    )


def _sample_rooms(rng: np.random.Generator, num_rooms: int) -> tuple[Rect, ...]:
    rooms, x = [], 0.0
    depth = rng.uniform(3.6, 5.2)
    for _ in range(num_rooms):
        width = rng.uniform(3.4, 4.8)
        rooms.append(Rect(x, 0.0, x + width, depth))
        x += width + WALL_M
    return tuple(rooms)


def _sample_doorway(rng: np.random.Generator, index: int, left: Rect, right: Rect) -> Doorway:
    width = float(rng.uniform(1.0, 1.3))
    return Doorway(index, (left.x1 + right.x0) / 2, float(rng.uniform(0.9, left.y1 - 0.9)), width)


def _walls(rooms: tuple[Rect, ...], doorways: tuple[Doorway, ...]) -> tuple[Rect, ...]:
    x0, x1, depth = rooms[0].x0, rooms[-1].x1, rooms[0].y1
    outer = [
        Rect(x0 - WALL_M, -WALL_M, x1 + WALL_M, 0.0),
        Rect(x0 - WALL_M, depth, x1 + WALL_M, depth + WALL_M),
        Rect(x0 - WALL_M, 0.0, x0, depth),
        Rect(x1, 0.0, x1 + WALL_M, depth),
    ]
    for door in doorways:
        low, high = door.x - WALL_M / 2, door.x + WALL_M / 2
        outer.append(Rect(low, 0.0, high, door.y - door.width / 2))
        outer.append(Rect(low, door.y + door.width / 2, high, depth))
    return tuple(outer)


def _sample_names(rng: np.random.Generator, num_things: int, same_color_share: float) -> list[tuple[str, str]]:
    names: list[tuple[str, str]] = []
    while len(names) < num_things:
        used = [color for color, _ in names]
        fresh = [color for color in ROOM_COLORS if color not in used]
        repeats = bool(used) and (not fresh or rng.random() < same_color_share)
        color = str(rng.choice(used if repeats else fresh))
        name = color, str(rng.choice(KINDS))
        if name not in names:
            names.append(name)
    return names


def _place(
    rng: np.random.Generator, site: _Site, make: Callable[[float, float], Thing | Furniture], index: int
) -> None:
    """Put something where it leaves passages, or nowhere; the first ones go to a room each."""
    room = site.rooms[index if index < len(site.rooms) else int(rng.integers(len(site.rooms)))]
    for _ in range(60):
        made = make(float(rng.uniform(room.x0 + 0.4, room.x1 - 0.4)), float(rng.uniform(room.y0 + 0.4, room.y1 - 0.4)))
        if site.leaves_passages(made, room):
            (site.things if isinstance(made, Thing) else site.furniture).append(made)  # type: ignore[arg-type]
            return


@dataclass(slots=True)
class _Site:
    """A house while it is furnished."""

    rooms: tuple[Rect, ...]
    doorways: tuple[Doorway, ...]
    things: list[Thing] = field(default_factory=list)
    furniture: list[Furniture] = field(default_factory=list)

    def leaves_passages(self, made: Thing | Furniture, room: Rect) -> bool:
        """Whether a robot still passes everywhere, with something more in a room."""
        x, y = _outline(made)
        if min(x.min() - room.x0, room.x1 - x.max(), y.min() - room.y0, room.y1 - y.max()) < 0.05:
            return False
        doors = [Rect(d.x - 0.1, d.y - d.width / 2, d.x + 0.1, d.y + d.width / 2) for d in self.doorways]
        if any(rect_distance(door, x, y).min() < _DOOR_CLEAR_M for door in doors):
            return False
        gaps = [thing_distance(other, x, y).min() for other in self.things]
        gaps += [furniture_distance(other, x, y).min() for other in self.furniture]
        return min(gaps, default=np.inf) >= PASSAGE_M


def _outline(made: Thing | Furniture) -> tuple[np.ndarray, np.ndarray]:
    """Return points on the outline."""
    if isinstance(made, Thing):
        turn = np.linspace(0, 2 * np.pi, 24)
        return made.x + made.radius * np.cos(turn), made.y + made.radius * np.sin(turn)
    side = np.linspace(-1, 1, 7)
    along = np.concatenate([side, side, -np.ones(7), np.ones(7)]) * made.half_x
    across = np.concatenate([-np.ones(7), np.ones(7), side, side]) * made.half_y
    cos, sin = math.cos(made.yaw), math.sin(made.yaw)
    return made.x + along * cos - across * sin, made.y + along * sin + across * cos


def _thing(rng: np.random.Generator, color: str, kind: str, x: float, y: float) -> Thing:
    rgb = np.clip(np.array(COLORS[color]) + rng.normal(0, 8, 3), 0, 255).astype(int)
    radius = float(rng.uniform(0.25, 0.33))
    height = {
        "ball": 2 * radius,
        "box": float(rng.uniform(0.4, 0.55)),
        "cone": float(rng.uniform(0.6, 0.75)),
        "cylinder": float(rng.uniform(0.55, 0.7)),
        "ring": 2 * radius,
        "pyramid": float(rng.uniform(0.5, 0.65)),
    }[kind]
    return Thing(
        kind, color, (int(rgb[0]), int(rgb[1]), int(rgb[2])), x, y, radius, height, float(rng.uniform(0, 6.283))
    )


def _furniture(rng: np.random.Generator, x: float, y: float) -> Furniture:
    half_x, half_y = rng.uniform(0.2, 0.55), rng.uniform(0.18, 0.35)
    rgb = np.clip(np.array(_WOODS[int(rng.integers(len(_WOODS)))]) + rng.normal(0, 6, 3), 0, 255).astype(int)
    yaw = float(rng.uniform(0, math.pi))
    return Furniture(x, y, float(half_x), float(half_y), float(rng.uniform(0.3, 1.0)), yaw, tuple(rgb.tolist()))


def _sample_finish(rng: np.random.Generator, num_rooms: int) -> Finish:
    def near(choices: tuple[tuple[int, int, int], ...]) -> tuple[int, int, int]:
        red, green, blue = np.clip(np.array(choices[int(rng.integers(len(choices)))]) + rng.normal(0, 6, 3), 0, 255)
        return int(red), int(green), int(blue)

    return Finish(
        wall_rgb=tuple(near(_GROUNDS) for _ in range(num_rooms)),
        floor_rgb=near(_FLOORS),
        ceiling_rgb=near(((236, 236, 232),)),
        frame_rgb=near(((92, 58, 36),)),
        texture=float(rng.uniform(0.03, 0.14)),
        floor_kind=str(rng.choice(("planks", "tiles", "carpet"))),
        seed=int(rng.integers(2**31)),
    )
