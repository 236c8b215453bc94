"""Solids and how rays meet them: for each ray the depth of its first point, and which way the surface faces there.

Shapes: H rows, W columns of the part of the picture that is looked at. Depths are inf where a ray misses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from nvila_ros.world.rooms.house import TUBE_M, WALL_HEIGHT_M, Furniture, House, Thing

_DOOR_M = 2.05
_NEAR_M = 0.02

Met = tuple[np.ndarray, tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Depth (H, W), and normal, its x, y and z each in a shape that broadcasts to (H, W)."""


@dataclass(frozen=True)
class Rays:
    """Rays of a picture from one point, by columns and rows."""

    x: float
    y: float
    z: float
    yaw: float
    left_W: np.ndarray
    up_H: np.ndarray
    dx_W: np.ndarray = field(init=False)
    dy_W: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        object.__setattr__(self, "dx_W", (cos - self.left_W * sin).astype(np.float32))
        object.__setattr__(self, "dy_W", (sin + self.left_W * cos).astype(np.float32))

    def cut(self, rows: slice, columns: slice) -> Rays:
        """Return the rays of a part of the picture."""
        return Rays(self.x, self.y, self.z, self.yaw, self.left_W[columns], self.up_H[rows])


class Solid(Protocol):
    """A solid that stands at x, y between two heights, within a circle in plan of radius `reach`."""

    @property
    def x(self) -> float:
        """Of its middle, m."""

    @property
    def y(self) -> float:
        """Likewise."""

    @property
    def low(self) -> float:
        """Height of its foot, m."""

    @property
    def high(self) -> float:
        """Height of its top, m."""

    @property
    def reach(self) -> float:
        """Radius of the circle that holds it, m."""

    def meet(self, rays: Rays) -> Met | None:
        """Return where rays first meet it; None where all of them miss."""


Content = tuple[Solid, tuple[int, int, int], int]
"""A solid, its RGB and its label."""


def _roots(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both roots of a t^2 + 2 b t + c, inf where there is none."""
    under = b * b - a * c
    with np.errstate(invalid="ignore", divide="ignore"):
        root = np.sqrt(under)
        first, second = (-b - root) / a, (-b + root) / a
    return np.where(under >= 0, first, np.inf), np.where(under >= 0, second, np.inf)


@dataclass(frozen=True)
class Ball:
    """A sphere that lies on the floor."""

    x: float
    y: float
    reach: float
    low: float = 0.0

    @property
    def high(self) -> float:
        """Its top."""
        return 2 * self.reach

    def meet(self, rays: Rays) -> Met | None:
        """Return where rays first meet it."""
        ox, oy, oz = rays.x - self.x, rays.y - self.y, rays.z - self.reach
        up = rays.up_H[:, None]
        a = rays.dx_W**2 + rays.dy_W**2 + up**2
        b = ox * rays.dx_W + oy * rays.dy_W + oz * up
        depth, _ = _roots(a, b, np.float32(ox * ox + oy * oy + oz * oz - self.reach**2))
        depth = np.where(depth > _NEAR_M, depth, np.inf)
        t = np.where(np.isfinite(depth), depth, 0)
        normal = (ox + t * rays.dx_W) / self.reach, (oy + t * rays.dy_W) / self.reach, (oz + t * up) / self.reach
        return depth, normal


@dataclass(frozen=True)
class Tapered:
    """A cone, or where the top is as wide as the foot a cylinder; both have a flat top."""

    x: float
    y: float
    reach: float
    high: float
    top: float
    low: float = 0.0

    def meet(self, rays: Rays) -> Met | None:
        """Return where rays first meet its side or its top."""
        ox, oy, up = rays.x - self.x, rays.y - self.y, rays.up_H[:, None]
        slope = (self.reach - self.top) / self.high
        foot = self.reach - slope * rays.z  # the radius at the height of the eye
        a = rays.dx_W**2 + rays.dy_W**2 - (slope * up) ** 2
        b = ox * rays.dx_W + oy * rays.dy_W + slope * foot * up
        side = np.full(np.broadcast(a, b).shape, np.inf, np.float32)
        for root in reversed(_roots(a, b, np.float32(ox * ox + oy * oy - foot * foot))):
            with np.errstate(invalid="ignore"):
                z = rays.z + root * up
            is_met = (root > _NEAR_M) & (z >= 0) & (z <= self.high) & (root < side)
            side = np.where(is_met, root, side)
        top = self._top(ox, oy, rays)
        depth = np.minimum(side, top)
        t = np.where(np.isfinite(depth), depth, 0)
        px, py = ox + t * rays.dx_W, oy + t * rays.dy_W
        length = np.maximum(np.hypot(px, py), 1e-6) * math.hypot(1, slope)
        on_top = top <= side
        return depth, (
            np.where(on_top, 0, px / length),
            np.where(on_top, 0, py / length),
            np.where(on_top, 1, slope / math.hypot(1, slope)),
        )

    def _top(self, ox: float, oy: float, rays: Rays) -> np.ndarray:
        if rays.z <= self.high:
            return np.full((len(rays.up_H), len(rays.dx_W)), np.inf, np.float32)
        with np.errstate(divide="ignore"):
            t = ((self.high - rays.z) / rays.up_H)[:, None]
        t = np.where(t > _NEAR_M, t, 1e6)
        is_met = (ox + t * rays.dx_W) ** 2 + (oy + t * rays.dy_W) ** 2 <= self.top**2
        return np.where(is_met & (t < 1e6), t, np.inf)


@dataclass(frozen=True)
class Hull:
    """What several planes enclose: a box or a pyramid. Planes (n, 4): outward normal, and how far along it they lie."""

    x: float
    y: float
    reach: float
    low: float
    high: float
    planes: tuple[tuple[float, float, float, float], ...]

    def meet(self, rays: Rays) -> Met | None:
        """Return where rays enter it."""
        up = rays.up_H[:, None]
        shape = len(rays.up_H), len(rays.dx_W)
        enter, leave = np.full(shape, _NEAR_M, np.float32), np.full(shape, np.inf, np.float32)
        face = np.full(shape, -1, np.int8)
        for k, (nx, ny, nz, distance) in enumerate(self.planes):
            along = nx * rays.dx_W + ny * rays.dy_W + nz * up
            gap = distance - (nx * (rays.x - self.x) + ny * (rays.y - self.y) + nz * rays.z)
            with np.errstate(divide="ignore"):
                t = np.float32(gap) / along
            comes_in = (along < 0) & (t > enter)
            enter = np.where(comes_in, t, enter)
            face[comes_in] = k
            leave = np.where((along >= 0) & (t < leave), t, leave)
            if gap < 0:  # outside of this plane: rays that go along or away from it miss
                leave = np.where(along >= 0, -np.inf, leave)
        depth = np.where((enter <= leave) & (face >= 0), enter, np.inf)
        normals = np.array([plane[:3] for plane in self.planes], np.float32)[face]
        return depth, (normals[..., 0], normals[..., 1], normals[..., 2])


@dataclass(frozen=True)
class Ring:
    """A torus that stands upright; `yaw` is that of its plane. Met by going as far as it is away, again and again."""

    x: float
    y: float
    reach: float
    yaw: float
    low: float = 0.0

    @property
    def high(self) -> float:
        """Its top."""
        return 2 * self.reach

    def meet(self, rays: Rays) -> Met | None:
        """Return where rays first meet it, to a millimetre or two."""
        up = np.broadcast_to(rays.up_H[:, None], (len(rays.up_H), len(rays.dx_W)))
        speed = np.sqrt(rays.dx_W**2 + rays.dy_W**2 + up**2)
        near = max(math.hypot(self.x - rays.x, self.y - rays.y) - self.reach, _NEAR_M)
        t = np.full(up.shape, near, np.float32) / speed
        distance = t
        for _ in range(24):
            distance = self._distance(rays, t, up)
            t = t + distance / speed
        is_met = (distance < 2e-3) & (t > _NEAR_M)
        across, along, height, middle = self._local(rays, t, up)
        ring = self.reach - TUBE_M
        out = np.maximum(middle, 1e-6)
        n_along, n_up = along * (1 - ring / out) / TUBE_M, height * (1 - ring / out) / TUBE_M
        n_across = across / TUBE_M
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        normal = n_along * cos - n_across * sin, n_along * sin + n_across * cos, n_up
        return np.where(is_met, t, np.inf), normal

    def _local(self, rays: Rays, t: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, ...]:
        px, py = rays.x - self.x + t * rays.dx_W, rays.y - self.y + t * rays.dy_W
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        across, along, height = py * cos - px * sin, px * cos + py * sin, rays.z - self.reach + t * up
        return across, along, height, np.hypot(along, height)

    def _distance(self, rays: Rays, t: np.ndarray, up: np.ndarray) -> np.ndarray:
        across, _, _, middle = self._local(rays, t, up)
        return np.hypot(middle - (self.reach - TUBE_M), across) - TUBE_M


def box(x: float, y: float, half: tuple[float, float], low: float, high: float, yaw: float) -> Hull:
    """Return an upright box."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    sides = [(cos, sin, 0.0, half[0]), (-cos, -sin, 0.0, half[0]), (-sin, cos, 0.0, half[1]), (sin, -cos, 0.0, half[1])]
    return Hull(x, y, math.hypot(*half), low, high, (*sides, (0.0, 0.0, 1.0, high), (0.0, 0.0, -1.0, -low)))


def pyramid(x: float, y: float, reach: float, high: float, yaw: float) -> Hull:
    """Return a pyramid on a square whose corners lie on the circle of radius `reach`."""
    half = reach / math.sqrt(2)
    length = math.hypot(high, half)
    turns = [yaw + k * math.pi / 2 for k in range(4)]
    sides = [
        (math.cos(a) * high / length, math.sin(a) * high / length, half / length, half * high / length) for a in turns
    ]
    return Hull(x, y, reach, 0.0, high, (*sides, (0.0, 0.0, -1.0, 0.0)))


def solid_of(thing: Thing) -> Solid:
    """Return the solid of a thing."""
    x, y, reach, high = thing.x, thing.y, thing.radius, thing.height
    if thing.kind == "ball":
        return Ball(x, y, reach)
    if thing.kind == "ring":
        return Ring(x, y, reach, thing.yaw)
    if thing.kind == "box":
        side = reach / math.sqrt(2)
        return box(x, y, (side, side), 0.0, high, thing.yaw)
    if thing.kind == "pyramid":
        return pyramid(x, y, reach, high, thing.yaw)
    return Tapered(x, y, reach, high, reach if thing.kind == "cylinder" else 0.0)


def _furniture_solid(piece: Furniture) -> Solid:
    return box(piece.x, piece.y, (piece.half_x, piece.half_y), 0.0, piece.height, piece.yaw)


def solids_of(house: House, furniture: int, frame: int) -> tuple[Content, ...]:
    """Return every solid of a house with its colour and label; walls are none, what is over a doorway is."""
    things = [(solid_of(thing), thing.rgb, k) for k, thing in enumerate(house.things)]
    pieces = [(_furniture_solid(piece), piece.rgb, furniture) for piece in house.furniture]
    over = [
        (box(d.x, d.y, (0.09, d.width / 2 + 0.08), _DOOR_M, WALL_HEIGHT_M, 0.0), house.finish.frame_rgb, frame)
        for d in house.doorways
    ]
    return (*things, *pieces, *over)
