"""Shortest paths against the obvious relaxation, and straight lines where nothing is in the way."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from nvila_ros.world.rooms.instructions import SUCCESS_M, eval_task, free_place
from nvila_ros.world.rooms.paths import (
    CELL_M,
    _dijkstra,
    gap_to,
    is_free_line,
    length_of,
    path_to,
)


def relax(is_free: np.ndarray, is_goal: np.ndarray) -> np.ndarray:
    """Every cell takes the best of its neighbours until none changes."""
    way = np.where(is_goal, 0.0, np.inf)
    while True:
        padded = np.pad(way, 1, constant_values=np.inf)
        best = way.copy()
        for dr in (-1, 0, 1):
            for dc in (-1, 0, 1):
                shifted = padded[1 + dr : 1 + dr + way.shape[0], 1 + dc : 1 + dc + way.shape[1]]
                best = np.minimum(best, shifted + CELL_M * math.hypot(dr, dc))
        best[~is_free] = np.inf
        if np.allclose(best, way, equal_nan=True):
            return best
        way = best


@pytest.mark.parametrize("seed", range(5))
def test_ways_are_those_of_relaxation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    is_free = rng.random((12, 17)) > 0.3
    is_goal = is_free & (rng.random((12, 17)) > 0.95)

    assert np.allclose(_dijkstra(is_free, is_goal), relax(is_free, is_goal))


@pytest.mark.parametrize("index", range(8))
def test_a_path_is_free_ends_at_its_goal_and_is_hardly_longer_than_it_must_be(index: int) -> None:
    task = eval_task(index)
    path = path_to(task.house, task.x, task.y, task.target, SUCCESS_M)

    assert path is not None
    thing = task.house.things[task.target]
    straight = math.dist(path[0], (thing.x, thing.y)) - thing.radius - 0.2 - SUCCESS_M
    assert path[0] == (task.x, task.y)
    assert gap_to(thing, *path[-1]) <= SUCCESS_M
    assert task.is_done(*path[-1])
    assert all(is_free_line(task.house, a, b, margin_m=0.0) for a, b in pairwise(path))
    assert length_of(path) >= straight - 1e-9
    if len(path) == 2:
        assert length_of(path) <= straight + CELL_M


def test_tasks_begin_undone_and_are_always_the_same() -> None:
    assert eval_task(3) == eval_task(3)
    for index in range(8):
        task = eval_task(index)
        assert not task.is_done(task.x, task.y)
        assert task.house.things[task.target].name in task.instruction
        x, y = free_place(np.random.default_rng(0), task.house, 0)
        assert task.house.room_of(x, y) == 0
