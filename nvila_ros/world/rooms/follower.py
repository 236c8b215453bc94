"""Who follows an instruction well: it knows the house, but acts only on what the camera has shown.

In: where the robot is, and which things and doorways its frames show. Out: one of the ten actions, and so the labels
that a model learns from. What was seen once is driven to along the shortest path; what was not seen is searched for by
turning left, or behind the doorway where the instruction says so. A follower that used more than the frames show would
teach guessing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nvila_ros.prompt.navila import ACTIONS, Action
from nvila_ros.world.rooms.house import House, free_distance, scan
from nvila_ros.world.rooms.paths import Point, gap_to, path_to
from nvila_ros.world.rooms.robot import ROBOT_M

STOP_M = 0.4
"""The follower stops where the robot's edge is this near to the target: a tenth of a metre within `SUCCESS_M`."""
_GOAL_M = 0.33
_AHEAD_RAD = math.radians(12)
_DOOR_VIEW_RAD = math.radians(38)
_FACING_RAD = math.radians(38)
MIN_PIXELS = 60
"""A thing is seen from so many of the 76,800 pixels of a frame on: eight on nvila-tiny's 112x112."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the frames of a step show: things by index, and doorways."""

    things: frozenset[int]
    doorways: frozenset[int]


def doorways_in_view(house: House, x: float, y: float, yaw: float) -> frozenset[int]:
    """Return the doorways that lie in view and that no wall hides."""
    found = set()
    for door in house.doorways:
        bearing = math.atan2(door.y - y, door.x - x)
        far = math.hypot(door.x - x, door.y - y)
        is_ahead = abs(_turn(bearing, yaw)) < _DOOR_VIEW_RAD
        if is_ahead and scan(house, x, y, np.array([bearing]), far)[0] >= far - 0.05:
            found.add(door.index)
    return frozenset(found)


def follow(house: House, target: int, x: float, y: float, yaw: float, seen: Seen, *, num_turned: int = 0) -> Action:
    """Return the next action towards a thing.

    Args:
        house: known.
        target: index of the thing.
        x: of the robot's centre, m.
        y: likewise.
        yaw: of the robot, rad.
        seen: what the frames show, the current one among them.
        num_turned: turns in a row that searched in vain; after a whole round the search goes on elsewhere.
    """
    thing = house.things[target]
    room, here = house.room_of(thing.x, thing.y), house.room_of(x, y)
    off = _turn(math.atan2(thing.y - y, thing.x - x), yaw)
    is_near = here == room and float(gap_to(thing, x, y)) <= STOP_M
    if is_near and abs(off) < _FACING_RAD:
        return ACTIONS[0]
    if is_near:
        return _turn_by(off)
    knows_way = target in seen.things or (here != room and bool(seen.doorways)) or here is None
    if not knows_way and num_turned < 8:
        return _nearest("left", math.radians(45))
    return _go(house, path_to(house, x, y, target, _GOAL_M), x, y, yaw)


def _go(house: House, path: list[Point] | None, x: float, y: float, yaw: float) -> Action:
    if path is None:
        return ACTIONS[0]
    corner = next((p for p in path[1:] if math.dist(p, (x, y)) > 0.12), path[-1])
    off = _turn(math.atan2(corner[1] - y, corner[0] - x), yaw)
    if abs(off) > _AHEAD_RAD:
        return _turn_by(off)
    far = math.dist(corner, (x, y))
    amounts = [a for a in reversed(ACTIONS[1:4]) if a.amount <= far + 0.13]
    for action in amounts or [ACTIONS[1]]:
        if _is_free_ahead(house, x, y, yaw, action.amount):
            return action
    return _turn_by(off if abs(off) > math.radians(3) else math.radians(15))


def _is_free_ahead(house: House, x: float, y: float, yaw: float, far: float) -> bool:
    way = np.linspace(0.05, far, max(int(far / 0.05), 2))
    free = free_distance(house, x + way * math.cos(yaw), y + way * math.sin(yaw))
    return bool((free >= ROBOT_M + 0.01).all())


def _turn_by(off: float) -> Action:
    return _nearest("left" if off > 0 else "right", abs(off))


def _nearest(kind: str, amount: float) -> Action:
    return min((a for a in ACTIONS if a.kind == kind), key=lambda a: abs(a.amount - amount))


def _turn(bearing: float, yaw: float) -> float:
    return math.remainder(bearing - yaw, 2 * math.pi)
