"""What a robot is instructed to do in a house: a task with its words, its target, and where the robot sets out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nvila_ros.world.rooms.house import House, free_distance, scan
from nvila_ros.world.rooms.house_sampler import sample_house
from nvila_ros.world.rooms.paths import gap_to, length_of, path_to
from nvila_ros.world.rooms.robot import ROBOT_M
from nvila_ros.world.scene import EVAL_SEED_BASE

SUCCESS_M = 0.5
"""A task is done where the robot says stop with its edge this near to the target's outline, in the target's room."""
NEAR_WORDINGS = (
    "Go to the {}.",
    "Drive to the {}.",
    "Stop at the {}.",
    "Find the {} and stop in front of it.",
    "Move to the {}.",
)
DOOR_WORDINGS = (
    "Pass the doorway, then stop at the {}.",
    "Go through the doorway and stop at the {}.",
    "Go into the next room and stop at the {}.",
    "Drive through the door, then go to the {}.",
)
_TASK_SEED = EVAL_SEED_BASE + 7 * 2**27


@dataclass(frozen=True, slots=True)
class Task:
    """An instruction in a house.

    Attributes:
        target: index of the thing to stop at.
        is_elsewhere: whether it is in another room than the start.
        shortest_m: way of the shortest path from the start to where the task is done.
    """

    house: House
    instruction: str
    target: int
    is_elsewhere: bool
    x: float
    y: float
    yaw: float
    shortest_m: float

    def is_done(self, x: float, y: float) -> bool:
        """Whether a stop at a place fulfils the task."""
        thing = self.house.things[self.target]
        in_room = self.house.room_of(x, y) == self.house.room_of(thing.x, thing.y)
        return in_room and float(gap_to(thing, x, y)) <= SUCCESS_M


def word_task(rng: np.random.Generator, house: House, target: int, *, is_elsewhere: bool) -> str:
    """Return an instruction to go to a thing, in one of several wordings."""
    wordings = DOOR_WORDINGS if is_elsewhere else NEAR_WORDINGS
    return wordings[int(rng.integers(len(wordings)))].format(house.things[target].name)


def sees_over(house: House, x: float, y: float, target: int) -> bool:
    """Whether nothing stands between a place and a thing, in plan."""
    thing = house.things[target]
    far = math.hypot(thing.x - x, thing.y - y) - thing.radius
    bearing = np.array([math.atan2(thing.y - y, thing.x - x)])
    return bool(scan(house, x, y, bearing, far)[0] >= far - 0.03)


def free_place(rng: np.random.Generator, house: House, room: int, margin_m: float = 0.12) -> tuple[float, float]:
    """Return a random place in a room where the robot fits."""
    rect = house.rooms[room]
    for _ in range(200):
        x, y = float(rng.uniform(rect.x0, rect.x1)), float(rng.uniform(rect.y0, rect.y1))
        if float(free_distance(house, np.array(x), np.array(y))) > ROBOT_M + margin_m:
            return x, y
    raise RuntimeError(f"room {room} of house {house.seed} has no free place")


def sample_task(rng: np.random.Generator, *, elsewhere_share: float = 0.4) -> Task:
    """Draw a house and a task in it that begins undone and can be done.

    A target in the start's room is in plain view from there, whichever way the robot faces; one elsewhere may not be.
    """
    while True:
        is_elsewhere = bool(rng.random() < elsewhere_share)
        num_rooms = 2 if is_elsewhere else int(rng.integers(1, 3))
        house = sample_house(rng, num_rooms=num_rooms, num_things=int(rng.integers(2, 4)) * num_rooms)
        task = _task_in(rng, house, is_elsewhere=is_elsewhere)
        if task is not None:
            return task


def _task_in(rng: np.random.Generator, house: House, *, is_elsewhere: bool) -> Task | None:
    if not house.things:
        return None
    target = int(rng.integers(len(house.things)))
    room = house.room_of(house.things[target].x, house.things[target].y) or 0
    start = 1 - room if is_elsewhere else room
    x, y = free_place(rng, house, start)
    path = path_to(house, x, y, target, SUCCESS_M)
    if path is None or (not is_elsewhere and not sees_over(house, x, y, target)):
        return None
    words = word_task(rng, house, target, is_elsewhere=is_elsewhere)
    yaw = float(rng.uniform(-math.pi, math.pi))
    task = Task(house, words, target, is_elsewhere, x, y, yaw, length_of(path))
    return None if task.is_done(x, y) or task.shortest_m < 0.5 else task


def eval_task(index: int) -> Task:
    """Return task number index in a house that training never draws; always the same."""
    return sample_task(np.random.default_rng(_TASK_SEED + index))
