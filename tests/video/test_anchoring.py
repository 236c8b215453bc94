"""Anchored sampling: the same frames make the same groups, whatever window holds them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nvila_ros.errors import QueryError
from nvila_ros.types import NS_PER_S, Query, RawFrame
from nvila_ros.video.anchoring import MIN_GROUPS, TimeGrid
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.selection import select_frames, window_ns
from tests.strategies import lists_of_all_sizes
from tests.tiny import raw_frame

GRIDS = st.builds(TimeGrid, st.integers(1, 9), st.sampled_from([1, 3, 8]), st.integers(1, 4))
STAMPS = lists_of_all_sizes(st.integers(-50, 400), min_size=1, max_size=200, unique=True).map(sorted)


def groups(grid: TimeGrid, stamps_ns: list[int]) -> list[tuple[int, ...]]:
    """Return the stamps of each group that is shown of a window that begins with a group."""
    shown = [stamps_ns[i] for i in grid.choose(stamps_ns)]
    size = grid.frames_per_group
    assert len(shown) % size == 0, "whole groups"
    return [tuple(shown[i : i + size]) for i in range(0, len(shown), size)]


def naive_group(grid: TimeGrid, stamps_ns: list[int], group: int) -> tuple[int, ...]:
    """Fill the ticks of a group that has passed one by one; empty where it has no frame."""
    by_tick = [[s for s in stamps_ns if s // grid.tick_ns == group * grid.frames_per_group + i] for i in range(99)]
    held = [tick[0] if tick else None for tick in by_tick[: grid.frames_per_group]]
    known = [stamp for stamp in held if stamp is not None]
    filled: list[int] = []
    for stamp in held if known else []:
        filled.append(stamp if stamp is not None else (filled or known)[-1 if filled else 0])
    return tuple(filled)


@given(grid=GRIDS, stamps=STAMPS, ends=st.tuples(st.integers(0, 199), st.integers(0, 199)), start=st.integers(-60, 400))
def test_group_that_has_passed_is_the_same_in_all_windows_that_hold_it(
    grid: TimeGrid, stamps: list[int], ends: tuple[int, int], start: int
) -> None:
    for end in ends:
        window = [stamp for stamp in stamps[: end + 1] if stamp >= grid.begin(start)]
        if not window:
            continue
        newest = window[-1] // grid.group_ns
        passed = range(window[0] // grid.group_ns, newest)
        expected = [naive_group(grid, stamps, group) for group in passed]  # of all frames, whatever the window

        *shown, last = groups(grid, window)

        assert shown == [group for group in expected if group]
        assert {stamp // grid.group_ns for stamp in last} == {newest}


@given(grid=GRIDS, stamps=STAMPS)
def test_newest_frame_is_shown_and_stands_for_what_has_not_come_yet(grid: TimeGrid, stamps: list[int]) -> None:
    shown = [stamps[i] for i in grid.choose(stamps)]

    assert shown == sorted(shown)
    assert set(shown) <= set(stamps)
    assert shown[-1] == stamps[-1]
    num_open = grid.frames_per_group - stamps[-1] // grid.tick_ns % grid.frames_per_group
    assert shown.count(stamps[-1]) >= num_open


@given(grid=GRIDS, starts=st.tuples(st.integers(-10_000, 10_000), st.integers(0, 300)))
def test_window_grows_at_its_end_only_until_the_next_stride(grid: TimeGrid, starts: tuple[int, int]) -> None:
    start, step = starts

    first, second = grid.begin(start), grid.begin(start + step)

    assert start - grid.stride_ns < first <= start
    assert (second - first) % grid.stride_ns == 0
    assert (second - first) // grid.stride_ns <= -(-step // grid.stride_ns)
    assert first % grid.group_ns == 0


@given(
    window_ns=st.integers(0, 10**6),
    num_frames=st.integers(0, 256),
    size=st.sampled_from([1, 2, 8]),
    start=st.integers(-(10**7), 10**7),
    kept=st.integers(0, 10**7),
    period=st.integers(1, 10**5),
)
@example(window_ns=140_401, num_frames=8, size=1, start=0, kept=0, period=23_405)
def test_grid_holds_the_window_within_the_frames_asked_for(
    window_ns: int, num_frames: int, size: int, start: int, kept: int, period: int
) -> None:
    if num_frames < MIN_GROUPS * size:
        with pytest.raises(QueryError, match=f"at least 4 groups of frames a camera, here {4 * size} frames, got"):
            TimeGrid.for_window(window_ns, num_frames, size, kept_ns=kept, period_ns=period)
        return

    grid = TimeGrid.for_window(window_ns, num_frames, size, kept_ns=kept, period_ns=period)

    num_groups = (start + window_ns) // grid.group_ns - grid.begin(start) // grid.group_ns + 1
    assert num_groups * size <= num_frames
    is_dense = window_ns + grid.stride_ns <= kept
    assert is_dense or grid.tick_ns % period == 0
    slack_ns = num_frames * size  # a tick is a whole number of ns
    assert grid.stride_ns <= max(window_ns / 3 + slack_ns, 0 if is_dense else grid.group_ns)


def stream(rate_hz: float, seconds: float) -> FrameBuffer[RawFrame]:
    return fill(FrameBuffer(1000.0, 1 << 30), rate_hz, 0, seconds)


def fill(buffer: FrameBuffer[RawFrame], rate_hz: float, start_s: float, end_s: float) -> FrameBuffer[RawFrame]:
    for k in range(round(start_s * rate_hz), round(end_s * rate_hz)):
        buffer.push(raw_frame(k / rate_hz))
    return buffer


def query(window_s: float, num_frames: int, **fields: object) -> Query:
    asked = {"query_id": "a", "question": "?", "cameras": ("camera",), "sampling": "anchored"}
    return Query(**(asked | {"window_s": window_s, "num_frames": num_frames} | fields))  # type: ignore[arg-type]


def test_window_that_slides_keeps_all_groups_but_the_newest_until_its_begin_moves() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(1000.0, 1 << 30)
    asked, kept, windows = query(16.0, 64), [], []
    for second in range(60, 90):
        fill(buffer, 10.0, 0 if second == 60 else second, second + 1)
        stamps = [frame.stamp_ns for frame in select_frames(buffer, asked, frames_per_group=8)]
        start_ns, newest_ns = window_ns(asked, stamps[-1])
        assert len(stamps) <= 64
        assert stamps[0] <= start_ns + NS_PER_S // 10
        assert newest_ns - stamps[0] <= 16 * NS_PER_S * 4 / 3 + NS_PER_S
        windows.append([stamps[i : i + 8] for i in range(0, len(stamps), 8)])
    for before, after in pairwise(windows):
        kept.append(sum(old == new for old, new in zip(before, after, strict=False)))

    moved = [before[0] != after[0] for before, after in pairwise(windows)]
    assert all(has_moved or n >= len(old) - 1 for has_moved, n, old in zip(moved, kept, windows, strict=False))
    assert sum(moved) <= 30 / 5.3 + 1  # a stride of two groups of eight ticks of a third of a second


@pytest.mark.parametrize("past_hz", [1.0, 3.2])
def test_thinning_of_the_past_changes_no_group(past_hz: float) -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(10.0, 1 << 30, past_s=90.0, past_hz=past_hz)
    full = stream(16.0, 130.0)
    fill(buffer, 16.0, 0, 120)
    asked = query(60.0, 256)
    for second in range(120, 130):
        fill(buffer, 16.0, second, second + 1)
        stamps = [frame.stamp_ns for frame in select_frames(buffer, asked, frames_per_group=8)]
        start_ns, end_ns = stamps[0] // NS_PER_S * NS_PER_S, stamps[-1]
        grid = TimeGrid.for_window(60 * NS_PER_S, 256, 8, kept_ns=0, period_ns=buffer.period_ns)
        whole = [frame.stamp_ns for frame in full.window(["camera"], grid.begin(start_ns), end_ns)[0]]
        assert stamps == [whole[i] for i in grid.choose(whole)]
        assert len(stamps) == (stamps[-1] // grid.group_ns - stamps[0] // grid.group_ns + 1) * 8


def test_window_that_begins_before_what_is_kept_is_refused_with_the_cure() -> None:
    buffer = fill(FrameBuffer(10.0, 1 << 30, past_s=60.0, past_hz=2.0), 2.0, 0, 100)

    with pytest.raises(QueryError, match=r"begins up to 20\.00 s before its window, so here 80\.00 s back, got 60\.00"):
        select_frames(buffer, query(60.0, 256))
    assert select_frames(buffer, query(45.0, 256))
    with pytest.raises(QueryError, match="raise past_s"):
        select_frames(buffer, query(0.0, 256, ago_start_s=50.0, ago_end_s=5.0))
    assert select_frames(buffer, query(0.0, 256, start_ns=40 * NS_PER_S, end_ns=100 * NS_PER_S))


def test_cameras_keep_their_own_share_of_frames_and_are_shown_without_repeats() -> None:
    buffer = stream(1.0, 40.0)
    for k in range(30, 41):
        buffer.push(raw_frame(k + 0.5, "right"))

    frames = select_frames(buffer, query(30.0, 17, cameras=("camera", "right")), frames_per_group=8)

    stamps = [frame.stamp_ns for frame in frames]
    assert stamps == sorted(set(stamps))
    assert {frame.camera for frame in frames} == {"camera", "right"}
    assert frames[-1].stamp_ns == round(40.5 * NS_PER_S)


def test_stream_that_has_begun_just_now_shows_what_it_has() -> None:
    buffer = stream(1.0, 1.0)
    assert len(select_frames(buffer, query(48.0, 64), frames_per_group=8)) == 1
    fill(buffer, 1.0, 1, 3)

    frames = select_frames(buffer, query(48.0, 64), frames_per_group=8)

    assert [frame.stamp_ns // NS_PER_S for frame in frames] == [0, 1, 2, 2, 2, 2, 2, 2]
