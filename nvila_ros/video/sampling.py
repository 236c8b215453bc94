"""Which frames of a window the model is shown: stamps in, indices out.

Uniform in time and not in count: a camera that stalls or drops frames leaves gaps, and a choice by count would crowd
the clip where frames are dense and show a wrong speed. The newest frame is always shown, since freshness is what a
robot asks for; for the same reason the choice is made from the newest frame backwards.

Three laws. `uniform` spreads the frames evenly. `recent` lets each gap be longer than the next newer one by the same
factor, so that the oldest is `RECENT_RATIO` times the newest: the end of the window in detail, its beginning for
context. `change` spreads them evenly over how much the picture changed, with a share of `TIME_WEIGHT` left to time, so
that a window in which little happens is still seen as a whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

RECENT_RATIO = 16.0
"""The oldest gap over the newest in a recent-weighted choice."""
TIME_WEIGHT = 0.2
"""How much of a change-driven choice goes by time."""
ROUNDING = 1e-12
"""Distances in a change-driven choice, of a whole of at most 1, that differ by less are equal."""


def sample_indices(stamps_ns: Sequence[int], num_frames: int) -> list[int]:
    """Choose at most `num_frames` frames, spread evenly in time and ending with the newest.

    Args:
        stamps_ns: capture times, ascending.
        num_frames: at least 1; one means the newest frame.

    Returns:
        min(num_frames, len(stamps_ns)) ascending indices. Each is the frame nearest to its share of the time (the
        older of two that are equally near) among those that leave enough frames for the shares before it.
    """
    count = min(num_frames, len(stamps_ns))
    newest_ns, span_ns = stamps_ns[-1], stamps_ns[-1] - stamps_ns[0]
    return _choose(stamps_ns, [newest_ns - span_ns * k // max(count - 1, 1) for k in range(count)])


def sample_recent(stamps_ns: Sequence[int], num_frames: int) -> list[int]:
    """Choose as `sample_indices` does, with gaps that grow by one factor from each to the next older.

    The oldest gap is `RECENT_RATIO` times the newest, where frames are dense enough for it.
    """
    count = min(num_frames, len(stamps_ns))
    growth = RECENT_RATIO ** (1 / max(count - 2, 1))
    ages = np.concatenate([[0.0], np.cumsum(growth ** np.arange(count - 1))])
    newest_ns, span_ns = stamps_ns[-1], stamps_ns[-1] - stamps_ns[0]
    return _choose(stamps_ns, [newest_ns - round(span_ns * age) for age in (ages / max(ages[-1], 1.0)).tolist()])


def sample_changes(stamps_ns: Sequence[int], changes: Sequence[float], num_frames: int) -> list[int]:
    """Choose at most `num_frames` frames with equal shares of change between them, ending with the newest.

    A step from one frame to the next cannot be parted, so it counts for one gap at most, however much changed in it:
    else the frames meant for its inside would crowd at its edge.

    Args:
        stamps_ns: capture times, ascending and distinct.
        changes: how much the picture changed from each frame to the next, at least 0; one less than stamps.
        num_frames: at least 1.

    Returns:
        indices as of `sample_indices`.
    """
    count = min(num_frames, len(stamps_ns))
    if count == 1:
        return [len(stamps_ns) - 1]
    positions = np.concatenate([[0.0], np.cumsum(_cap(_steps(stamps_ns, changes), count - 1))])
    targets = np.linspace(positions[-1], 0.0, count)
    return _choose(positions.tolist(), targets.tolist(), tie=ROUNDING)


def split_frames(num_frames: int, num_held: Sequence[int]) -> list[int]:
    """Share the frames of a clip among cameras.

    The frames are dealt one by one to the cameras in turn, in the order in which they were named, and a camera that
    has no frame left is passed over. So shares differ by at most one, except where a camera holds less than its share.

    Args:
        num_frames: frames to deal.
        num_held: frames that each camera has in the window.

    Returns:
        the share of each camera.
    """
    shares = [0] * len(num_held)
    left = min(num_frames, sum(num_held))
    while left:
        open_cameras = [i for i, held in enumerate(num_held) if shares[i] < held]
        rounds = max(1, min(left // len(open_cameras), min(num_held[i] - shares[i] for i in open_cameras)))
        for i in open_cameras[:left]:
            shares[i] += rounds
            left -= rounds
    return shares


def _choose(positions: Sequence[float], targets: Sequence[float], tie: float = 0.0) -> list[int]:
    """Return ascending indices: the last position, and those nearest to the other targets, which descend from it.

    Of two positions whose distances differ by at most `tie` the older is taken.
    """
    chosen = [len(positions) - 1]
    for num_older, target in zip(reversed(range(len(targets) - 1)), targets[1:], strict=True):
        chosen.append(_nearest(positions, target, num_older, chosen[-1] - 1, tie))
    chosen.reverse()
    return chosen


def _nearest(positions: Sequence[float], target: float, low: int, high: int, tie: float) -> int:
    after = bisect_left(positions, target, low, high)
    if after > low and target - positions[after - 1] <= abs(positions[after] - target) + tie:
        return after - 1
    return after


def _steps(stamps_ns: Sequence[int], changes: Sequence[float]) -> np.ndarray:
    """Mix change and time, each as shares of the whole: (len(stamps_ns) - 1,) float64, all positive."""
    times = np.diff(np.asarray(stamps_ns, np.int64))
    steps: np.ndarray = TIME_WEIGHT * times / times.sum()
    total = float(np.sum(changes))
    if total > 0:
        steps += (1 - TIME_WEIGHT) * np.asarray(changes) / total
    return steps


def _cap(steps: np.ndarray, num_gaps: int) -> np.ndarray:
    """Lower the largest steps such that none is more than an even share of the sum of what is left."""
    descending = np.sort(steps)[::-1]
    for num_capped in range(num_gaps):
        cap = descending[num_capped:].sum() / (num_gaps - num_capped)
        if descending[num_capped] <= cap:
            break
    return np.asarray(np.minimum(steps, cap))
