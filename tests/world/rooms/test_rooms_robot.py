"""The robot keeps to its limits and never enters what stands there."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.world.rooms.house import free_distance, scan
from nvila_ros.world.rooms.house_sampler import sample_house
from nvila_ros.world.rooms.instructions import free_place
from nvila_ros.world.rooms.robot import ROBOT_M, Robot, RobotLimits

HOUSE = sample_house(np.random.default_rng(4), num_rooms=2, num_things=5)
START = free_place(np.random.default_rng(4), HOUSE, 0, margin_m=0.3)


@settings(deadline=None)
@given(
    commands=st.lists(st.tuples(st.floats(-3, 3), st.floats(-5, 5), st.integers(1, 40)), max_size=8),
    yaw=st.floats(-3, 3),
)
def test_no_command_drives_it_into_anything_or_beyond_its_limits(
    commands: list[tuple[float, float, int]], yaw: float
) -> None:
    robot, limits, dt_s = Robot(HOUSE, *START, yaw), RobotLimits(), 0.02
    for speed, turn, ticks in commands:
        for _ in range(ticks):
            before = robot.speed, robot.turn, robot.x, robot.y
            robot.advance(speed, turn, dt_s)

            assert free_distance(HOUSE, np.array(robot.x), np.array(robot.y)) >= ROBOT_M - 1e-9
            assert abs(robot.speed) <= limits.speed
            assert abs(robot.turn) <= limits.turn
            assert robot.speed == 0 or abs(robot.speed - before[0]) <= limits.acceleration * dt_s + 1e-9
            assert math.dist((robot.x, robot.y), before[2:]) <= limits.speed * dt_s + 1e-9


def test_an_arc_is_a_circle() -> None:
    house = sample_house(np.random.default_rng(0), num_rooms=1, num_things=0)
    room = house.rooms[0]
    robot = Robot(house, (room.x0 + room.x1) / 2, 0.6, 0.0, RobotLimits(acceleration=1e6, turn_acceleration=1e6))
    robot.speed, robot.turn = 0.4, 0.8
    for _ in range(100):
        robot.advance(0.4, 0.8, math.pi / 0.8 / 100)

    assert math.isclose(robot.y, 0.6 + 2 * 0.4 / 0.8, abs_tol=1e-3)
    assert math.isclose(robot.x, (room.x0 + room.x1) / 2, abs_tol=1e-3)
    assert math.isclose(robot.traveled_m, math.pi * 0.5, abs_tol=1e-3)


def test_a_touch_is_counted_once_and_left_again() -> None:
    house = sample_house(np.random.default_rng(0), num_rooms=1, num_things=0)
    robot = Robot(house, 0.5, house.rooms[0].y1 / 2, math.pi)
    for _ in range(200):
        robot.advance(0.5, 0.0, 0.02)
    touched = robot.num_collisions, robot.is_touching, robot.x
    for _ in range(50):
        robot.advance(-0.5, 0.0, 0.02)

    assert touched[:2] == (1, True)
    assert touched[2] - ROBOT_M < 0.02
    assert not robot.is_touching
    assert robot.x > touched[2] + 0.2


def test_a_laser_tells_the_distance_to_a_wall() -> None:
    house = sample_house(np.random.default_rng(0), num_rooms=1, num_things=0)
    room = house.rooms[0]

    found = scan(house, 1.0, 1.5, np.array([0.0, math.pi / 2, math.pi, -math.pi / 4]), 3.0)

    assert np.allclose(found, [min(room.x1 - 1, 3.0), min(room.y1 - 1.5, 3.0), 1.0, 1.5 * math.sqrt(2)], atol=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_a_scan_is_that_of_rays_that_go_as_far_as_nothing_is_in_the_way(seed: int) -> None:
    rng = np.random.default_rng(seed)
    house = sample_house(rng, num_rooms=2, num_things=5)
    x, y = free_place(rng, house, seed % 2)
    bearings = rng.uniform(-np.pi, np.pi, 200)

    reach = np.zeros(200)
    for _ in range(400):
        reach += free_distance(house, x + reach * np.cos(bearings), y + reach * np.sin(bearings))

    # A ray along an edge creeps past it ever more slowly.
    off = np.abs(np.minimum(reach, 6.0) - scan(house, x, y, bearings, 6.0))
    assert (off < 1e-3).mean() > 0.97
    assert (np.minimum(reach, 6.0) <= scan(house, x, y, bearings, 6.0) + 1e-6).all()
