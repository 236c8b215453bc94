"""A house: rooms in a row, doorways between them, furniture, and coloured things with names.

Metres; x runs along the row of rooms, y across, z up; yaw in radians, counterclockwise from x. What stands on the floor
has an exact outline in plan, so that distances, collisions and shortest paths are exact too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nvila_ros.world.scene import COLORS, Light

KINDS: tuple[str, ...] = ("ball", "box", "cone", "cylinder", "ring", "pyramid")
"""Names of the kinds of things."""
ROOM_COLORS: tuple[str, ...] = ("red", "orange", "yellow", "green", "blue", "purple")
"""Names of the colours of things, of those in `COLORS`."""
WALL_HEIGHT_M = 2.4
WALL_M = 0.12
"""Thickness of a wall."""
TUBE_M = 0.07
"""Half the thickness of a ring."""

assert set(ROOM_COLORS) <= set(COLORS)


@dataclass(frozen=True, slots=True)
class Rect:
    """A rectangle along the axes."""

    x0: float
    y0: float
    x1: float
    y1: float

    def holds(self, x: float, y: float) -> bool:
        """Whether a point lies within."""
        return self.x0 <= x <= self.x1 and self.y0 <= y <= self.y1


@dataclass(frozen=True, slots=True)
class Thing:
    """A coloured thing with a name.

    Attributes:
        radius: of the circle that holds its outline.
        yaw: of box, pyramid and ring.
    """

    kind: str
    color: str
    rgb: tuple[int, int, int]
    x: float
    y: float
    radius: float
    height: float
    yaw: float

    @property
    def name(self) -> str:
        """Colour and kind."""
        return f"{self.color} {self.kind}"


@dataclass(frozen=True, slots=True)
class Furniture:
    """A box that is in the way and has no name: half its width and depth, its height and colour."""

    x: float
    y: float
    half_x: float
    half_y: float
    height: float
    yaw: float
    rgb: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Doorway:
    """An opening in the wall between room `index` and the next one; the wall lies at x."""

    index: int
    x: float
    y: float
    width: float


@dataclass(frozen=True, slots=True)
class Finish:
    """The look of a house: RGB of walls, floor and ceiling, strength of their textures, and the seed of these."""

    wall_rgb: tuple[tuple[int, int, int], ...]
    floor_rgb: tuple[int, int, int]
    ceiling_rgb: tuple[int, int, int]
    frame_rgb: tuple[int, int, int]
    texture: float
    floor_kind: str
    seed: int


@dataclass(frozen=True, slots=True)
class House:
    """All that stands still.

    Attributes:
        rooms: their floors, from left to right.
        walls: in plan.
        light: of the picture; the sun is a unit vector towards the light.
        noise: sigma of the sensor, grey levels.
    """

    rooms: tuple[Rect, ...]
    walls: tuple[Rect, ...]
    doorways: tuple[Doorway, ...]
    things: tuple[Thing, ...]
    furniture: tuple[Furniture, ...]
    finish: Finish
    light: Light
    sun: tuple[float, float, float]
    noise: float
    seed: int

    def room_of(self, x: float, y: float) -> int | None:
        """Return the index of the room that a point lies in; None in a doorway or outside."""
        found = [k for k, room in enumerate(self.rooms) if room.holds(x, y)]
        return found[0] if found else None


def rect_distance(rect: Rect, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance of points to a rectangle, 0 within, in the shape of x and y."""
    return np.hypot(
        np.maximum(np.maximum(rect.x0 - x, x - rect.x1), 0), np.maximum(np.maximum(rect.y0 - y, y - rect.y1), 0)
    )


def furniture_distance(piece: Furniture, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance of points to a piece of furniture in plan, 0 within."""
    cos, sin = np.cos(piece.yaw), np.sin(piece.yaw)
    along = np.abs((x - piece.x) * cos + (y - piece.y) * sin) - piece.half_x
    across = np.abs((y - piece.y) * cos - (x - piece.x) * sin) - piece.half_y
    return np.hypot(np.maximum(along, 0), np.maximum(across, 0))


def thing_distance(thing: Thing, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the distance of points to the circle that holds a thing, 0 within."""
    return np.maximum(np.hypot(x - thing.x, y - thing.y) - thing.radius, 0)


def free_distance(house: House, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return how far points are from the nearest wall, piece of furniture or thing, m, in their shape."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    nearest = np.full(np.broadcast(x, y).shape, np.inf)
    for rect in house.walls:
        np.minimum(nearest, rect_distance(rect, x, y), out=nearest)
    for piece in house.furniture:
        np.minimum(nearest, furniture_distance(piece, x, y), out=nearest)
    for thing in house.things:
        np.minimum(nearest, thing_distance(thing, x, y), out=nearest)
    return nearest


def scan(house: House, x: float, y: float, bearings: np.ndarray, longest_m: float) -> np.ndarray:
    """Return how far a ray from a point reaches in each direction, as a planar laser measures, m, at most `longest_m`.

    A thing is the circle that holds it, as for collisions. Rays are (B,) float64, rad.
    """
    dx, dy = np.cos(bearings), np.sin(bearings)
    reach = np.full(len(bearings), longest_m)
    for rect in house.walls:
        low, high = (rect.x0 - x, rect.y0 - y), (rect.x1 - x, rect.y1 - y)
        np.minimum(reach, _enter_box(dx, dy, low, high), out=reach)
    for piece in house.furniture:
        cos, sin = np.cos(piece.yaw), np.sin(piece.yaw)
        along, across = (x - piece.x) * cos + (y - piece.y) * sin, (y - piece.y) * cos - (x - piece.x) * sin
        low, high = (-piece.half_x - along, -piece.half_y - across), (piece.half_x - along, piece.half_y - across)
        np.minimum(reach, _enter_box(dx * cos + dy * sin, dy * cos - dx * sin, low, high), out=reach)
    for thing in house.things:
        along = (thing.x - x) * dx + (thing.y - y) * dy
        under = along**2 - (thing.x - x) ** 2 - (thing.y - y) ** 2 + thing.radius**2
        enter = along - np.sqrt(np.maximum(under, 0))
        np.minimum(reach, np.where((under >= 0) & (along > 0), np.maximum(enter, 0), longest_m), out=reach)
    return reach


def _enter_box(dx: np.ndarray, dy: np.ndarray, low: tuple[float, float], high: tuple[float, float]) -> np.ndarray:
    """Return how far rays from the origin go until they enter a box along the axes; inf where they miss it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ax, bx, ay, by = low[0] / dx, high[0] / dx, low[1] / dy, high[1] / dy
    enter = np.fmax(np.fmin(ax, bx), np.fmin(ay, by))
    leave = np.fmin(np.fmax(ax, bx), np.fmax(ay, by))
    return np.where((enter <= leave) & (leave > 0), np.maximum(enter, 0), np.inf)
