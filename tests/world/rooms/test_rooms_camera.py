"""A ray caster's picture, labels and depth against rays that creep forward until they are inside of something."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nvila_ros.world.rooms.camera import FLOOR, WALL, RoomCamera, take_picture
from nvila_ros.world.rooms.house import TUBE_M, WALL_HEIGHT_M, House, Thing, free_distance, furniture_distance
from nvila_ros.world.rooms.house_sampler import sample_house
from nvila_ros.world.rooms.instructions import free_place

CREEP_M = 0.004
CAMERA = RoomCamera(width=80, height=60)


def is_inside(thing: Thing, x: float, y: float, z: float) -> bool:
    """The obvious rule of each kind."""
    dx, dy, far = x - thing.x, y - thing.y, math.hypot(x - thing.x, y - thing.y)
    along, across = (
        dx * math.cos(thing.yaw) + dy * math.sin(thing.yaw),
        dy * math.cos(thing.yaw) - dx * math.sin(thing.yaw),
    )
    if thing.kind == "ball":
        return math.dist((x, y, z), (thing.x, thing.y, thing.radius)) <= thing.radius
    if thing.kind == "ring":
        return math.hypot(math.hypot(along, z - thing.radius) - (thing.radius - TUBE_M), across) <= TUBE_M
    if not 0 <= z <= thing.height:
        return False
    share = 1 - z / thing.height
    side = thing.radius / math.sqrt(2)
    return {
        "cylinder": far <= thing.radius,
        "cone": far <= thing.radius * share,
        "box": max(abs(along), abs(across)) <= side,
        "pyramid": max(abs(along), abs(across)) <= side * share,
    }[thing.kind]


def creep(house: House, x: float, y: float, z: float, ray: np.ndarray) -> tuple[int | None, float]:
    """The label of the first thing on a ray, None without, and the depth at which it or anything else is met."""
    for k in range(1, 4000):
        depth = k * CREEP_M
        px, py, pz = x + ray[0] * depth, y + ray[1] * depth, z + ray[2] * depth
        found = [n for n, thing in enumerate(house.things) if is_inside(thing, px, py, pz)]
        if found:
            return found[0], depth
        at = np.array(px), np.array(py)
        is_in_piece = any(furniture_distance(f, *at) == 0 and pz <= f.height for f in house.furniture)
        if not 0 < pz < WALL_HEIGHT_M or is_in_piece or house.room_of(px, py) is None:
            return None, depth
    raise AssertionError("a ray left the house")


@pytest.mark.parametrize("seed", range(6))
def test_picture_and_depth_are_those_of_creeping_rays(seed: int) -> None:
    rng = np.random.default_rng(seed)
    house = sample_house(rng, num_rooms=1, num_things=5)
    x, y = free_place(rng, house, 0)
    yaw = float(rng.uniform(-math.pi, math.pi))

    picture = take_picture(house, x, y, yaw, CAMERA)

    forward, left = np.array([math.cos(yaw), math.sin(yaw)]), np.array([-math.sin(yaw), math.cos(yaw)])
    wrong = 0
    for row, column in zip(rng.integers(60, size=60), rng.integers(80, size=60), strict=True):
        plan = forward + left * float(CAMERA.left[column])
        label, depth = creep(house, x, y, CAMERA.height_m, np.array([*plan, float(CAMERA.up[row])]))
        seen = int(picture.label_HW[row, column])
        is_named = label == seen if label is not None else seen < 0
        wrong += not (is_named and abs(picture.depth_HW[row, column] - depth) < 0.03)
    assert wrong <= 1  # a ray along an edge may creep past it


def test_the_same_place_gives_the_same_picture_and_noise_its_own() -> None:
    house = sample_house(np.random.default_rng(3), num_rooms=2, num_things=4)
    x, y = free_place(np.random.default_rng(0), house, 0)

    first, second = (take_picture(house, x, y, 0.3, RoomCamera()) for _ in range(2))
    noisy = take_picture(house, x, y, 0.3, RoomCamera(), np.random.default_rng(1))

    assert first.image.shape == (240, 320, 3)
    assert first.image.dtype == np.uint8
    assert np.array_equal(first.image, second.image)
    assert not np.array_equal(first.image, noisy.image)
    assert {WALL, FLOOR} <= set(np.unique(first.label_HW))


def test_houses_leave_passages_and_name_each_thing_once() -> None:
    for seed in range(20):
        house = sample_house(np.random.default_rng(seed), num_rooms=1 + seed % 3, num_things=6)
        names = [thing.name for thing in house.things]
        doors = [(door.x, door.y) for door in house.doorways]

        assert len(set(names)) == len(names) >= 2
        assert all(free_distance(house, np.array(x), np.array(y)) > 0.4 for x, y in doors)
