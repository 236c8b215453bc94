"""Shortest paths of the robot's centre: on a grid of 0.1 m, pulled taut.

A field holds the way from each free cell to the nearest goal cell over eight neighbours (Dijkstra); a path follows it
down and is then shortened wherever the straight line is free. So its length is at most some hundredths above the truth.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from nvila_ros.world.rooms.house import House, Thing, free_distance, thing_distance
from nvila_ros.world.rooms.robot import ROBOT_M

CELL_M = 0.1
MARGIN_M = 0.05
"""How far from anything a path keeps the robot's edge."""
_WITHIN_M = 1e-6
_STEPS = tuple((dr, dc, CELL_M * math.hypot(dr, dc)) for dr in (-1, 0, 1) for dc in (-1, 0, 1) if (dr, dc) != (0, 0))

Point = tuple[float, float]


@dataclass(frozen=True)
class FloorGrid:
    """Cells of a house: centres x (columns,) and y (rows,), and which of them the robot's centre may be on."""

    x: np.ndarray
    y: np.ndarray
    is_free: np.ndarray

    def cell(self, x: float, y: float) -> tuple[int, int]:
        """Return row and column of the free cell nearest to a place."""
        rows, columns = np.nonzero(self.is_free)
        k = int(((self.x[columns] - x) ** 2 + (self.y[rows] - y) ** 2).argmin())
        return int(rows[k]), int(columns[k])


@lru_cache(maxsize=16)
def grid_of(house: House) -> FloorGrid:
    """Return the cells of a house."""
    x = np.arange(house.rooms[0].x0, house.rooms[-1].x1 + CELL_M / 2, CELL_M)
    y = np.arange(house.rooms[0].y0, house.rooms[0].y1 + CELL_M / 2, CELL_M)
    return FloorGrid(x, y, free_distance(house, x[None], y[:, None]) >= ROBOT_M + MARGIN_M)


def gap_to(thing: Thing, x: np.ndarray | float, y: np.ndarray | float) -> np.ndarray:
    """Return how far the robot's edge is from a thing's outline, m."""
    return thing_distance(thing, np.asarray(x), np.asarray(y)) - ROBOT_M


@lru_cache(maxsize=64)
def field_to(house: House, target: int, gap_m: float) -> np.ndarray:
    """Return each cell's way to where the robot's edge is within `gap_m` of a thing, in its room; inf without one."""
    grid, thing = grid_of(house), house.things[target]
    room = house.rooms[house.room_of(thing.x, thing.y) or 0]
    in_room = (grid.x[None] >= room.x0) & (grid.x[None] <= room.x1)
    is_goal = grid.is_free & in_room & (gap_to(thing, grid.x[None], grid.y[:, None]) <= gap_m)
    return _dijkstra(grid.is_free, is_goal)


def _dijkstra(is_free: np.ndarray, is_goal: np.ndarray) -> np.ndarray:
    """Return the way over free cells to the nearest goal, m."""
    way = np.full(is_free.shape, np.inf)
    way[is_goal] = 0.0
    free = np.pad(is_free, 1).tolist()
    best = np.pad(way, 1, constant_values=np.inf).tolist()
    heap = [(0.0, int(row) + 1, int(column) + 1) for row, column in np.argwhere(is_goal)]
    while heap:
        so_far, row, column = heapq.heappop(heap)
        if so_far > best[row][column]:
            continue
        for dr, dc, step in _STEPS:
            r, c, length = row + dr, column + dc, so_far + step
            if free[r][c] and length < best[r][c]:
                best[r][c] = length
                heapq.heappush(heap, (length, r, c))
    return np.array(best)[1:-1, 1:-1]


def path_to(house: House, x: float, y: float, target: int, gap_m: float) -> list[Point] | None:
    """Return the corners of the shortest path from a place to within `gap_m` of a thing; None where there is none."""
    grid, field = grid_of(house), field_to(house, target, gap_m)
    row, column = grid.cell(x, y)
    if not np.isfinite(field[row, column]):
        return None
    cells = [(row, column)]
    while field[row, column] > 0:
        row, column = min(
            (
                (row + dr, column + dc)
                for dr, dc, _ in _STEPS
                if 0 <= row + dr < len(grid.y) and 0 <= column + dc < len(grid.x)
            ),
            key=lambda at: field[at],
        )
        cells.append((row, column))
    corners = pull_taut(house, [(x, y), *((float(grid.x[c]), float(grid.y[r])) for r, c in cells[1:] or cells)])
    return _end_straight(house, corners, house.things[target], gap_m)


def _end_straight(house: House, corners: list[Point], thing: Thing, gap_m: float) -> list[Point]:
    """Return a path whose last leg goes straight at the thing, where that is free: cells prefer eight directions."""
    (x, y), far = corners[-2], thing.radius + ROBOT_M + gap_m - _WITHIN_M
    distance = math.dist((x, y), (thing.x, thing.y))
    share = max(1 - far / distance, 0.0)
    end = x + share * (thing.x - x), y + share * (thing.y - y)
    is_shorter = math.dist((x, y), end) < math.dist((x, y), corners[-1])
    in_room = house.room_of(*end) == house.room_of(thing.x, thing.y)
    return [*corners[:-1], end] if is_shorter and in_room and is_free_line(house, (x, y), end) else corners


def pull_taut(house: House, points: list[Point]) -> list[Point]:
    """Return the corners that are left where every free straight line replaces what lies between its ends."""
    kept, k = [points[0]], 0
    while k < len(points) - 1:
        far = len(points) - 1
        while far > k + 1 and not is_free_line(house, points[k], points[far]):
            far -= 1
        kept.append(points[far])
        k = far
    return kept


def is_free_line(house: House, start: Point, end: Point, margin_m: float = MARGIN_M - 0.02) -> bool:
    """Whether the robot's edge keeps a margin all along a line."""
    count = max(int(math.dist(start, end) / 0.04), 1) + 1
    share = np.linspace(0, 1, count)[1:] if count > 2 else np.array([1.0])
    x, y = (start[k] + share * (end[k] - start[k]) for k in (0, 1))
    return bool((free_distance(house, x, y) >= ROBOT_M + margin_m).all())


def length_of(points: list[Point]) -> float:
    """Return the length of a path, m."""
    return sum(math.dist(a, b) for a, b in pairwise(points))
