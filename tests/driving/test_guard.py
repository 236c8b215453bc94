"""A scan's free way against a robot that goes ahead in small steps until a point is within its circle."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.driving.guard import TURNS_RAD, find_space, free_ahead, nearest

BEARINGS = np.linspace(-np.pi, np.pi, 90, endpoint=False)


@given(
    seen=st.lists(st.tuples(st.integers(0, 89), st.floats(0.25, 4.0)), max_size=12),
    radius=st.floats(0.1, 0.24),
)
def test_the_way_ahead_is_that_of_small_steps(seen: list[tuple[int, float]], radius: float) -> None:
    ranges = np.full(90, np.inf)
    for beam, far in seen:
        ranges[beam] = far
    points = [
        (far * np.cos(BEARINGS[k]), far * np.sin(BEARINGS[k])) for k, far in enumerate(ranges) if np.isfinite(far)
    ]

    found = free_ahead(ranges, BEARINGS, radius)

    ways = np.arange(0, 4.2, 0.002)
    touches = [way for way in ways if any(np.hypot(x - way, y) < radius for x, y in points)]
    if touches:
        assert abs(found - touches[0]) < 0.05
    else:
        assert found > ways[-1] - 0.3
    around = min((np.hypot(x, y) for x, y in points), default=np.inf) - radius
    assert np.isclose(nearest(ranges, BEARINGS, radius), max(around, 0)) or around == np.inf


def test_what_is_no_number_is_nothing() -> None:
    ranges = np.array([np.nan, 0.0, -1.0, np.inf])

    assert free_ahead(ranges, np.zeros(4), 0.2) == np.inf
    assert nearest(ranges, np.zeros(4), 0.2) == np.inf


def test_the_way_behind_a_turn_is_that_of_a_robot_that_has_turned() -> None:
    ranges = 0.3 + 2 * np.abs(np.sin(5 * BEARINGS))
    space = find_space(ranges, BEARINGS, 0.2)

    assert (space.ahead_m, space.around_m) == (free_ahead(ranges, BEARINGS, 0.2), nearest(ranges, BEARINGS, 0.2))
    for turn, way in zip(TURNS_RAD, space.turns_m, strict=True):
        seen = [(bearing - turn, far) for bearing, far in zip(BEARINGS, ranges, strict=True)]
        assert way == free_ahead(np.array([far for _, far in seen]), np.array([b for b, _ in seen]), 0.2)
    assert [round(np.degrees(turn)) for turn in TURNS_RAD] == [15, 30, 45, -15, -30, -45]
