"""Which frames of a window the model is shown: stamps in, indices out.

Uniform in time and not in count: a camera that stalls or drops frames leaves gaps, and a choice by count would crowd
the clip where frames are dense and tell a wrong speed. The newest frame is always shown, since freshness is what a
robot asks for; for the same reason the choice is made from the newest frame backwards.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


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
    if count == len(stamps_ns):
        return list(range(count))
    newest_ns, span_ns = stamps_ns[-1], stamps_ns[-1] - stamps_ns[0]
    chosen: list[int] = []
    high = len(stamps_ns) - 1
    for num_older in reversed(range(count)):
        share_ns = span_ns * (count - 1 - num_older) // max(count - 1, 1)
        index = _nearest(stamps_ns, newest_ns - share_ns, num_older, high)
        chosen.append(index)
        high = index - 1
    chosen.reverse()
    return chosen


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


def _nearest(stamps_ns: Sequence[int], target_ns: int, low: int, high: int) -> int:
    after = bisect_left(stamps_ns, target_ns, low, high)
    if after > low and target_ns - stamps_ns[after - 1] <= abs(stamps_ns[after] - target_ns):
        return after - 1
    return after
