"""The frames that a question is about: its window in the buffer, and the few that stand for it.

In: the buffer and a query. Out: raw frames in capture order; nothing is converted here. The window is given by two
stamps, by two ages ("5 to 10 s ago", counted from the newest frame and not from the clock, so that a paused bag or a
stalled camera is asked about what it last showed), or by its length up to the newest frame.

Change is read off thumbnails. A cell counts by how far it moves beyond what cells do all the time in that window, so
that sensor noise, which is in every frame, does not outweigh an object that appears once. At most `MAX_COMPARED` frames
a camera are looked at, one in each tick of time: the ticks lie at round times, so that a window which slides on meets
the same frames again, whose thumbnails are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.errors import FrameError, NoFramesError, QueryError
from nvila_ros.types import NS_PER_S, EncodedImage, Query, RawFrame
from nvila_ros.video.anchoring import TimeGrid
from nvila_ros.video.buffer import DropReason, FrameBuffer
from nvila_ros.video.sampling import sample_changes, sample_indices, sample_recent, split_frames
from nvila_ros.video.thumbnails import thumbnail

ANCHORED = "anchored"
"""Sampling on a grid of time that does not move with the window; see `anchoring`."""
SPREAD = ("uniform", "recent", "change")
"""Samplings that spread frames over the window; see `sampling`."""
SAMPLINGS = (*SPREAD, ANCHORED)
"""What a query may say of its sampling."""
MAX_COMPARED = 256
"""Most frames of a camera whose thumbnails are compared, or twice the frames asked for where that is more."""
NOISE_FACTOR = 4.0
"""A change counts from this many times the usual one: 2.7 sigma where the usual one is Gaussian noise."""
FLOAT32_ERROR = 2.0**-24
"""Largest relative error of rounding to float32, as which messages carry ages."""
LEAST_LEVELS = 2.0
"""Grey levels below which a change is never counted: thumbnails are rounded."""


@dataclass(frozen=True, slots=True)
class Freshness:
    """When a camera's newest frame must have been captured for a question about the present, ROS clock.

    Attributes:
        oldest_ns: before this, the camera has stalled.
        latest_ns: behind this, the camera's clock and ours disagree, and nobody knows how old the frame is.
    """

    oldest_ns: int
    latest_ns: int


def select_frames(
    buffer: FrameBuffer[RawFrame], query: Query, fresh: Freshness | None = None, *, frames_per_group: int = 1
) -> list[RawFrame]:
    """Choose the frames that a query is about.

    Each camera gets its share of `query.num_frames` (see `split_frames`), chosen from its part of the window as
    `query.sampling` says. An answer about fewer cameras than were asked about would hide that one is missing.

    Args:
        buffer: what is kept.
        query: with its cameras named.
        fresh: what a camera's newest frame must be, where the query is about the present; None accepts any age.
        frames_per_group: frames of a clip that the model averages, which anchored sampling keeps together.

    Returns:
        At least one frame of each camera, in capture order; the newest frame of the window is among them. Anchored
        sampling repeats frames to fill groups, and begins before the window, see `anchoring`.

    Raises:
        NoFramesError: a camera has no frame in the window, or has stalled; the message names it, the window and what
            the buffer holds.
        QueryError: there is no such sampling, or it needs more frames or a longer past.
        FrameError: no frame whose change is asked for can be decoded.
    """
    newest_ns = buffer.newest_ns(query.cameras)
    if newest_ns is None:
        raise NoFramesError(_describe_emptiness(buffer, query))
    if fresh is not None and query.start_ns is None:
        _check_fresh(buffer, query, fresh)
    start_ns, end_ns = window_ns(query, newest_ns)
    held = buffer.window(query.cameras, start_ns, end_ns)
    missing = [camera for camera, frames in zip(query.cameras, held, strict=True) if not frames]
    if missing:
        raise NoFramesError(_describe_miss(buffer, query, missing, start_ns, end_ns))
    if query.sampling == ANCHORED:
        return _anchor(buffer, query, frames_per_group, newest_ns)
    chosen: list[RawFrame] = []
    for frames, share in zip(held, split_frames(query.num_frames, list(map(len, held))), strict=True):
        chosen += _sample(buffer, frames, share, query.sampling)
    return sorted(chosen, key=lambda frame: frame.stamp_ns)


def window_ns(query: Query, newest_ns: int) -> tuple[int, int]:
    """Return the first and last stamp of a query's window, both included, where the newest frame is of `newest_ns`.

    Messages carry ages as float32, so a frame that is exactly as old as an end of the window lies inside.
    """
    if query.start_ns is not None and query.end_ns is not None:
        return query.start_ns, query.end_ns
    if query.ago_start_s > 0:
        return newest_ns - _age_ns(query.ago_start_s, 1), newest_ns - _age_ns(query.ago_end_s, -1)
    return newest_ns - _age_ns(query.window_s, 1), newest_ns


def _age_ns(age_s: float, side: int) -> int:
    """Return an age, moved by the rounding error of float32 to the side of older (1) or newer (-1) frames."""
    return round(age_s * (1 + side * FLOAT32_ERROR) * NS_PER_S)


def measure_changes(thumbnails: Sequence[np.ndarray]) -> np.ndarray:
    """Return how much each thumbnail differs from the one before it, beyond what is usual among these.

    Args:
        thumbnails: (32, 32) uint8 each, in order.

    Returns:
        (len(thumbnails) - 1,) float64, mean grey levels of a cell.
    """
    stack = np.stack(thumbnails).astype(np.int16).reshape(len(thumbnails), -1)
    levels = np.abs(np.diff(stack, axis=0))
    usual = float(np.median(np.median(levels, axis=1))) if len(levels) else 0.0
    return np.asarray(np.maximum(levels - max(LEAST_LEVELS, NOISE_FACTOR * usual), 0.0).mean(axis=1, dtype=np.float64))


def _anchor(buffer: FrameBuffer[RawFrame], query: Query, frames_per_group: int, newest_ns: int) -> list[RawFrame]:
    """Return the frames on the grid of a query, which depends on its window's length and not on where that lies.

    Raises:
        QueryError: too few frames are asked for, or the window begins before what the buffer keeps: its first group
            would change with every question.
    """
    start_ns, end_ns = window_ns(query, newest_ns)
    length_ns = round((end_ns - start_ns) * (1 - 2 * FLOAT32_ERROR))  # rounding must not make ticks of two periods
    num_cameras = len(query.cameras)
    grid = TimeGrid.for_window(
        length_ns,
        query.num_frames // num_cameras,
        frames_per_group if num_cameras == 1 else 1,  # frames of several cameras are shown as images
        kept_ns=buffer.horizon_ns - (newest_ns - end_ns),
        period_ns=buffer.period_ns,
    )
    reach_ns = newest_ns - end_ns + length_ns + grid.stride_ns
    if query.start_ns is None and reach_ns > buffer.kept_ns:
        raise QueryError(
            f"sampling anchored begins up to {grid.stride_ns / NS_PER_S:.2f} s before its window, so here "
            f"{reach_ns / NS_PER_S:.2f} s back, got {buffer.kept_ns / NS_PER_S:.2f} s that are kept; raise past_s, "
            "ask about a shorter window, or take sampling uniform"
        )
    chosen: list[RawFrame] = []
    for frames in buffer.window(query.cameras, grid.begin(end_ns - length_ns), end_ns):
        indices = grid.choose([frame.stamp_ns for frame in frames])
        chosen += [frames[i] for i in (indices if len(set(indices)) > 1 else indices[-1:])]
    return sorted(chosen, key=lambda frame: frame.stamp_ns)


def _sample(buffer: FrameBuffer[RawFrame], frames: Sequence[RawFrame], share: int, sampling: str) -> list[RawFrame]:
    if sampling not in SAMPLINGS:
        raise QueryError(f"sampling must be one of {', '.join(SAMPLINGS)}, got {sampling!r}")
    stamps_ns = [frame.stamp_ns for frame in frames]
    if sampling == "uniform" or share in (1, len(frames)):
        return [frames[i] for i in sample_indices(stamps_ns, share)]
    if sampling == "recent":
        return [frames[i] for i in sample_recent(stamps_ns, share)]
    compared, thumbnails = _look(buffer, [frames[i] for i in _ticks(stamps_ns, max(MAX_COMPARED, 2 * share))])
    changes = measure_changes(thumbnails)
    return [compared[k] for k in sample_changes([frame.stamp_ns for frame in compared], changes.tolist(), share)]


def _look(buffer: FrameBuffer[RawFrame], frames: Sequence[RawFrame]) -> tuple[list[RawFrame], list[np.ndarray]]:
    """Return frames and their thumbnails, without those that are damaged, which are dropped from the buffer."""
    seen: list[RawFrame] = []
    thumbnails: list[np.ndarray] = []
    last: FrameError | None = None
    for frame in frames:
        try:
            thumbnails.append(thumbnail(frame))
            seen.append(frame)
        except FrameError as error:
            if not isinstance(frame.image, EncodedImage):  # an encoding that only the robot's cv_bridge knows
                raise
            buffer.discard(frame)
            last = error
    if last is not None and not seen:
        raise last
    return seen, thumbnails


def _ticks(stamps_ns: Sequence[int], most: int) -> list[int]:
    """Return the index of the last stamp within each tick of 2^n ns, with the smallest n that gives at most `most`.

    Halving the ticks at most doubles their number, so more than half of `most` come back where there are as many.
    """
    stamps = np.asarray(stamps_ns, np.int64)
    for exponent in range(63):
        last = np.flatnonzero(np.diff(stamps >> exponent, append=np.iinfo(np.int64).max))
        if len(last) <= most:
            break
    return [int(i) for i in last]


def _check_fresh(buffer: FrameBuffer[RawFrame], query: Query, fresh: Freshness) -> None:
    for camera in query.cameras:
        newest_ns = buffer.newest_ns([camera])
        if newest_ns is None:
            raise NoFramesError(f"no frame of {camera} has come; {_elsewhere(query, [camera])}see its driver and topic")
        if newest_ns > fresh.latest_ns:
            raise NoFramesError(
                f"the clocks of {camera} and of this node disagree: its newest frame, of {_seconds(newest_ns)} s, is "
                f"{(newest_ns - fresh.latest_ns) / NS_PER_S:.3f} s further ahead than clocks may differ; synchronize "
                "them, set use_sim_time on both sides or on none, or max_age_s to 0"
            )
        if newest_ns < fresh.oldest_ns:
            late_s = (fresh.oldest_ns - newest_ns) / NS_PER_S
            raise NoFramesError(
                f"{camera} has stalled: its newest frame, of {_seconds(newest_ns)} s, is {late_s:.3f} s older than "
                f"max_age_s allows; {_elsewhere(query, [camera])}see its driver and clock, set use_sim_time where a "
                "bag plays, or ask about the past by start and end"
            )


def _describe_emptiness(buffer: FrameBuffer[RawFrame], query: Query) -> str:
    if query.start_ns is not None and query.end_ns is not None:
        window = f" in [{_seconds(query.start_ns)}, {_seconds(query.end_ns)}] s"
    elif query.ago_start_s > 0:
        window = f" from {query.ago_start_s:g} to {query.ago_end_s:g} s before the newest"
    else:
        window = f" in the last {query.window_s:g} s" if query.window_s else ""
    asked = f"no frame of {', '.join(query.cameras)}{window}; the buffer holds none of them"
    num_large = buffer.state().num_dropped[DropReason.TOO_LARGE.value]
    if num_large:
        return f"{asked}, and {num_large} were each larger than buffer_bytes; raise it"
    return f"{asked}; is the camera publishing, and are its images taken? see /diagnostics"


def _describe_miss(
    buffer: FrameBuffer[RawFrame], query: Query, missing: Sequence[str], start_ns: int, end_ns: int
) -> str:
    asked = f"no frame of {', '.join(missing)} in [{_seconds(start_ns)}, {_seconds(end_ns)}] s"
    if others := _elsewhere(query, missing):
        asked = f"{asked}; {others.removesuffix(', or ')}"
    state = buffer.state(missing)
    if state.oldest_ns is None or state.newest_ns is None:
        return f"{asked}; the buffer holds none now"
    held = f"the buffer holds {state.num_frames} from {_seconds(state.oldest_ns)} to {_seconds(state.newest_ns)} s"
    if end_ns < state.oldest_ns:
        lost_s = (state.oldest_ns - end_ns) / NS_PER_S
        return f"{asked}; {held}: that was {lost_s:.3f} s too early, keep more with past_s, buffer_s or buffer_bytes"
    return f"{asked}; {held}"


def _elsewhere(query: Query, missing: Sequence[str]) -> str:
    """Return how to ask the other cameras alone, if there are any."""
    others = [camera for camera in query.cameras if camera not in missing]
    return f"ask {', '.join(others)} alone by cameras, or " if others else ""


def _seconds(stamp_ns: int) -> str:
    return f"{stamp_ns / NS_PER_S:.3f}"
