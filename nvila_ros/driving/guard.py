"""What a planar scan says of the way ahead.

Source: Nav2's collision checks project the footprint along the motion; a round robot's is a corridor ahead, and a
circle where it turns.
"""

from __future__ import annotations

import numpy as np

from nvila_ros.driving.motion import Space
from nvila_ros.prompt.navila import ACTIONS

TURNS_RAD = tuple(
    action.amount * (1 if action.kind == "left" else -1) for action in ACTIONS if action.kind in ("left", "right")
)


def find_space(ranges: np.ndarray, bearings: np.ndarray, radius_m: float) -> Space:
    """Return what is free for a round robot, ahead, around, and ahead behind each turn; arguments as `free_ahead`'s."""
    return Space(
        free_ahead(ranges, bearings, radius_m),
        nearest(ranges, bearings, radius_m),
        tuple(free_ahead(ranges, bearings - turn, radius_m) for turn in TURNS_RAD),
    )


def free_ahead(ranges: np.ndarray, bearings: np.ndarray, radius_m: float) -> float:
    """Return how far a round robot can go ahead before it touches what a scan sees, m; inf where nothing is.

    Args:
        ranges: of each beam from the robot's centre, m; values that are no number, or not above 0, see nothing.
        bearings: of each beam, rad, 0 ahead.
        radius_m: of the robot.
    """
    x, y = _points(ranges, bearings)
    is_in_way = (np.abs(y) < radius_m) & (x > 0)
    if not is_in_way.any():
        return np.inf
    front = np.sqrt(radius_m**2 - y[is_in_way] ** 2)
    return float(np.maximum(x[is_in_way] - front, 0).min())


def nearest(ranges: np.ndarray, bearings: np.ndarray, radius_m: float) -> float:
    """Return how far the nearest point of a scan is from the robot's edge, m; 0 where it touches."""
    x, y = _points(ranges, bearings)
    return float(max(np.hypot(x, y).min(initial=np.inf) - radius_m, 0.0))


def _points(ranges: np.ndarray, bearings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    seen = np.isfinite(ranges) & (ranges > 0)
    return ranges[seen] * np.cos(bearings[seen]), ranges[seen] * np.sin(bearings[seen])
