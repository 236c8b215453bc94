from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nvila_ros.types import NS_PER_S, RawFrame
from nvila_ros.video.buffer import MAX_DISORDER_NS, PAST_SHARE, DropReason, FrameBuffer
from tests.strategies import lists_of_all_sizes
from tests.tiny import raw_frame

CAMERAS = ("front", "rear")
FRAME_BYTES = raw_frame(0).num_bytes


def new_buffer(horizon_s: float = 10.0, max_bytes: int = 1 << 20) -> FrameBuffer[RawFrame]:
    return FrameBuffer(horizon_s, max_bytes)


def stamps_s(buffer: FrameBuffer[RawFrame], camera: str = "camera") -> list[float]:
    (frames,) = buffer.window([camera], -(1 << 62), 1 << 62)
    return [frame.stamp_ns / NS_PER_S for frame in frames]


def test_window_is_closed_on_both_sides() -> None:
    buffer = new_buffer()
    for second in range(5):
        buffer.push(raw_frame(second))

    (frames,) = buffer.window(["camera"], NS_PER_S, 3 * NS_PER_S)

    assert [frame.stamp_ns // NS_PER_S for frame in frames] == [1, 2, 3]


def test_frame_that_comes_late_is_put_in_order() -> None:
    buffer = new_buffer()
    for stamp in (1.0, 1.2, 1.1):
        assert buffer.push(raw_frame(stamp)) == 0

    assert stamps_s(buffer) == [1.0, 1.1, 1.2]


def test_stamps_that_jump_back_clear_only_their_camera() -> None:
    buffer = new_buffer()
    for camera in CAMERAS:
        buffer.push(raw_frame(100, camera))

    assert buffer.push(raw_frame(90, "front")) == 0  # as yet it may be the only one
    assert stamps_s(buffer, "front") == [100]
    jump_ns = buffer.push(raw_frame(90.1, "front"))

    assert jump_ns == 10 * NS_PER_S
    assert stamps_s(buffer, "front") == [90, 90.1]
    assert buffer.state().num_dropped["late"] == 0
    assert stamps_s(buffer, "rear") == [100]
    assert buffer.state().num_dropped["time_jump"] == 1


def test_one_frame_far_behind_the_others_costs_no_other() -> None:
    buffer = new_buffer()
    for stamp in (100, 100.1, 2, 100.2, 50, 100.3):
        assert buffer.push(raw_frame(stamp)) == 0

    assert stamps_s(buffer) == [100, 100.1, 100.2, 100.3]
    assert buffer.state().num_dropped["late"] == 2
    assert buffer.state().num_dropped["time_jump"] == 0


@pytest.mark.parametrize("past_s", [0.0, 100.0])
def test_damaged_frame_is_dropped_wherever_it_lies(past_s: float) -> None:
    frames = [raw_frame(k) for k in range(8)]
    for damaged in frames:
        buffer: FrameBuffer[RawFrame] = FrameBuffer(2.0, 1 << 20, past_s=past_s, past_hz=1.0)
        for frame in frames:
            buffer.push(frame)
        held = stamps_s(buffer)

        buffer.discard(damaged)
        buffer.discard(damaged)
        buffer.discard(raw_frame(7))  # another frame with a stamp that is there

        assert stamps_s(buffer) == [stamp for stamp in held if stamp != damaged.stamp_ns / NS_PER_S]
        assert buffer.state().num_dropped["damaged"] == (damaged.stamp_ns / NS_PER_S in held)


def test_buffer_of_damaged_frames_only_becomes_empty() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(1.0, 1 << 20, past_s=100.0, past_hz=1.0)
    frames = [raw_frame(k) for k in range(5)]
    for frame in frames:
        buffer.push(frame)
    for frame in reversed(frames):
        buffer.discard(frame)

    assert buffer.newest_ns(["front", "camera"]) is None
    assert buffer.state().num_bytes == 0


def test_camera_that_keeps_still_behind_a_jump_of_another_is_of_the_same_past() -> None:
    buffer = new_buffer()
    for camera in CAMERAS:
        buffer.push(raw_frame(100, camera))

    for tenth in range(15):
        buffer.push(raw_frame(90 + tenth / 10, "front"))

    assert stamps_s(buffer, "rear") == []
    assert stamps_s(buffer, "front") == [90 + tenth / 10 for tenth in range(15)]
    assert buffer.state().num_dropped["time_jump"] == 2


@pytest.mark.parametrize("goes_on", [True, False])
def test_camera_with_a_clock_of_its_own_voids_no_others(goes_on: bool) -> None:
    """One frame of the front has a wrong stamp, or all have from then on while the rear goes on."""
    buffer = new_buffer()
    for tenth in range(30):
        is_wrong = tenth == 5 or (goes_on and tenth > 5)
        buffer.push(raw_frame((10 if is_wrong else 100) + tenth / 10, "front"))
        if goes_on or tenth < 5:
            buffer.push(raw_frame(100 + tenth / 10, "rear"))

    assert len(stamps_s(buffer, "rear")) == (30 if goes_on else 5)


@pytest.mark.parametrize("back_ns", [MAX_DISORDER_NS, MAX_DISORDER_NS + 1])
def test_jump_back_is_more_than_the_disorder_of_transports(back_ns: int) -> None:
    buffer = new_buffer()
    buffer.push(raw_frame(100))

    assert buffer.push(raw_frame(100 - back_ns / NS_PER_S)) == 0
    jump_ns = buffer.push(raw_frame(98.5))

    is_jump = back_ns > MAX_DISORDER_NS
    dropped = buffer.state().num_dropped
    assert (jump_ns, dropped["time_jump"], dropped["late"]) == ((back_ns, 1, 0) if is_jump else (0, 0, 1))
    assert buffer.state().num_frames == 2


@pytest.mark.parametrize(("second_s", "kept"), [(94.0, [94.0, 95.0]), (93.999, [93.999]), (96.0, [95.0, 96.0])])
def test_first_frame_after_a_jump_is_of_its_past_unless_it_is_far_ahead_of_the_second(
    second_s: float, kept: list[float]
) -> None:
    buffer = new_buffer()
    for stamp in (100, 95, second_s):
        jump_ns = buffer.push(raw_frame(stamp))

    assert jump_ns == 5 * NS_PER_S
    assert stamps_s(buffer) == kept
    assert buffer.state().num_dropped["late"] == 2 - len(kept)


@pytest.mark.parametrize(
    ("stamps", "is_kept"),
    [
        ([90, 90.5, 91.499], True),  # front is back for less than a second
        ([90, 90.5, 91.5], False),
        ([97.4, 97.5, 98.999], False),
        ([97.4, 97.5, 99], True),  # rear is no more than a second ahead by now, and may be late
        ([90, 90.5, 80, 80.5, 81.499], True),  # less than a second after the last jump
        ([90, 90.5, 80, 80.5, 81.5], False),
    ],
)
def test_camera_is_of_another_past_a_second_after_the_jump_if_it_is_more_than_a_second_ahead(
    stamps: list[float], is_kept: bool
) -> None:
    buffer = new_buffer()
    for camera in CAMERAS:
        buffer.push(raw_frame(100, camera))
    for stamp in stamps:
        buffer.push(raw_frame(stamp, "front"))

    assert bool(stamps_s(buffer, "rear")) == is_kept


def test_state_is_of_the_cameras_asked_for_and_bytes_of_all() -> None:
    buffer = new_buffer()
    for camera, stamp in (("front", 1), ("front", 2), ("rear", 3)):
        buffer.push(raw_frame(stamp, camera))

    front, both, none = (buffer.state(cameras) for cameras in (["front"], None, ["side"]))

    assert (front.num_frames, front.oldest_ns, front.newest_ns) == (2, NS_PER_S, 2 * NS_PER_S)
    assert (both.num_frames, both.oldest_ns, both.newest_ns) == (3, NS_PER_S, 3 * NS_PER_S)
    assert (none.num_frames, none.oldest_ns, none.newest_ns) == (0, None, None)
    assert front.num_bytes == both.num_bytes == none.num_bytes == 3 * FRAME_BYTES
    assert both.num_dropped == {reason.value: 0 for reason in DropReason}
    assert [buffer.newest_ns(cameras) for cameras in (["front"], CAMERAS, ["side"])] == [
        2 * NS_PER_S,
        3 * NS_PER_S,
        None,
    ]
    assert buffer.window(["side", "rear"], 0, 9 * NS_PER_S) == [[], buffer.window(["rear"], 0, 9 * NS_PER_S)[0]]


def test_frames_beyond_the_horizon_are_dropped() -> None:
    buffer = new_buffer(horizon_s=2.0)
    for second in range(6):
        buffer.push(raw_frame(second))

    assert stamps_s(buffer) == [3, 4, 5]
    assert buffer.state().num_dropped["aged"] == 3


def test_bytes_are_bounded_over_all_cameras_oldest_first() -> None:
    buffer = new_buffer(max_bytes=3 * FRAME_BYTES)
    for camera, stamp in (("front", 1), ("rear", 2), ("front", 3), ("rear", 4), ("front", 5)):
        buffer.push(raw_frame(stamp, camera))

    assert stamps_s(buffer, "front") == [3, 5]
    assert stamps_s(buffer, "rear") == [4]
    assert buffer.state().num_dropped["bytes"] == 2


def test_frame_above_the_whole_bound_is_not_taken() -> None:
    buffer = new_buffer(max_bytes=FRAME_BYTES)
    buffer.push(raw_frame(1))

    buffer.push(raw_frame(2, width=100))

    assert stamps_s(buffer) == [1]
    assert buffer.state().num_dropped["too_large"] == 1


def test_same_stamp_again_replaces_the_frame() -> None:
    buffer = new_buffer()
    buffer.push(raw_frame(1))
    newer = raw_frame(1)

    buffer.push(newer)

    assert buffer.window(["camera"], 0, 1 << 62)[0][0] is newer
    assert buffer.state().num_bytes == FRAME_BYTES


def test_clear_empties_every_camera() -> None:
    buffer = new_buffer()
    for camera in CAMERAS:
        buffer.push(raw_frame(1, camera))

    assert buffer.clear() == 2
    assert buffer.newest_ns(CAMERAS) is None
    assert buffer.state().num_bytes == 0


def test_readers_see_whole_windows_while_frames_come() -> None:
    buffer = new_buffer(horizon_s=0.5)
    pushing = threading.Thread(target=lambda: [buffer.push(raw_frame(i / 100)) for i in range(3000)])
    pushing.start()
    while pushing.is_alive():
        stamps = stamps_s(buffer)
        assert stamps == sorted(stamps)
        assert not stamps or stamps[-1] - stamps[0] <= 0.5 + 1e-6
    pushing.join()


def kept_of_stream(stamps_s: list[float], horizon_s: float, past_s: float, past_hz: float) -> list[float]:
    """Say what stays of a stream that came in order, looking at all of it at once."""
    newest = stamps_s[-1]
    first_of_period = {math.floor(stamp * past_hz): stamp for stamp in reversed(stamps_s)}
    return [
        stamp
        for stamp in stamps_s
        if newest - stamp <= horizon_s
        or (newest - stamp <= past_s and first_of_period[math.floor(stamp * past_hz)] == stamp)
    ]


@given(
    lists_of_all_sizes(st.integers(0, 40 * 64), min_size=1, max_size=120, unique=True).map(sorted),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_past_keeps_the_first_frame_of_each_period(ticks: list[int], past_hz: float) -> None:
    stamps = [tick / 64 for tick in ticks]
    buffer: FrameBuffer[RawFrame] = FrameBuffer(3.0, 1 << 20, past_s=12.0, past_hz=past_hz)
    for stamp in stamps:
        buffer.push(raw_frame(stamp))

    assert stamps_s(buffer) == kept_of_stream(stamps, 3.0, 12.0, past_hz)


def test_past_not_above_the_horizon_is_none() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(2.0, 1 << 20, past_s=2.0)
    for second in range(6):
        buffer.push(raw_frame(second))

    assert stamps_s(buffer) == [3, 4, 5]
    assert buffer.state().num_dropped["thinned"] == 0


def test_short_of_bytes_the_past_has_its_share_and_the_newest_stay_dense() -> None:
    num_held = 80
    buffer: FrameBuffer[RawFrame] = FrameBuffer(10.0, num_held * FRAME_BYTES, past_s=60.0, past_hz=1.0)
    for i in range(3000):
        buffer.push(raw_frame(i / 30))

    stamps = stamps_s(buffer)
    num_past = round(PAST_SHARE * num_held)
    dense = stamps[num_past + 1 :]
    assert len(stamps) == num_held
    assert dense == pytest.approx([(3000 - len(dense) + i) / 30 for i in range(len(dense))])
    assert np.diff(stamps[:num_past]) == pytest.approx([1.0] * (num_past - 1), abs=0.04)


def test_past_and_newest_frames_of_two_cameras_share_the_bytes() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(10.0, 80 * FRAME_BYTES, past_s=60.0, past_hz=1.0)
    for i in range(2000):
        buffer.push(raw_frame(i / 30, CAMERAS[i % 2]))

    front, rear = (stamps_s(buffer, camera) for camera in CAMERAS)
    assert abs(len(front) - len(rear)) <= 2
    assert min(front[-1] - front[0], rear[-1] - rear[0]) > 8


def test_frame_that_comes_late_into_a_taken_period_of_the_past_is_thinned_out() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(0.1, 1 << 20, past_s=60.0, past_hz=2.0)
    for stamp in (1.0, 1.6, 2.1, 1.9, 1.4):
        buffer.push(raw_frame(stamp))

    assert stamps_s(buffer) == [1.0, 1.6, 2.1]
    assert buffer.state().num_dropped["thinned"] == 2


def test_frame_that_comes_late_into_the_past_stays_in_an_empty_period_only() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(0.25, 1 << 20, past_s=60.0, past_hz=1.0)
    for stamp in (1.5, 3.25, 3.5, 3.75):
        buffer.push(raw_frame(stamp))
    assert stamps_s(buffer) == [1.5, 3.25, 3.5, 3.75]
    for stamp in (2.875, 3.0, 3.25):  # between two, before one of its period, again
        assert buffer.push(raw_frame(stamp)) == 0

    assert stamps_s(buffer) == [1.5, 2.875, 3.25, 3.5, 3.75]
    dropped = buffer.state().num_dropped
    assert (dropped["thinned"], dropped["repeated"], dropped["aged"]) == (1, 1, 0)
    assert buffer.state().num_bytes == 5 * FRAME_BYTES


def test_window_reaches_from_the_past_into_the_present() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(1.0, 1 << 20, past_s=60.0, past_hz=1.0)
    for i in range(41):
        buffer.push(raw_frame(i / 4))

    (frames,) = buffer.window(["camera"], 7 * NS_PER_S, round(9.5 * NS_PER_S))

    assert [frame.stamp_ns / NS_PER_S for frame in frames] == [7, 8, 9, 9.25, 9.5]


class BufferMachine(RuleBasedStateMachine):
    """Any order of arrival: the buffer stays sorted, within its bounds, and loses count of nothing."""

    past_s = 0.0
    span_s = 5.0

    def __init__(self) -> None:
        super().__init__()
        self.buffer: FrameBuffer[RawFrame] = FrameBuffer(5.0, 12 * FRAME_BYTES, past_s=self.past_s, past_hz=0.5)
        self.num_pushed = 0

    @rule(stamp_ms=st.integers(0, 20_000), camera=st.sampled_from(CAMERAS), width=st.integers(1, 60))
    def push(self, stamp_ms: int, camera: str, width: int) -> None:
        self.buffer.push(raw_frame(stamp_ms / 1000, camera, width))
        self.num_pushed += 1

    @rule(camera=st.sampled_from(CAMERAS), count=st.integers(2, 40), period_ms=st.integers(1, 3000))
    def push_stream(self, camera: str, count: int, period_ms: int) -> None:
        newest_ns = self.buffer.newest_ns([camera]) or 0
        for i in range(1, count + 1):
            self.push(newest_ns // 10**6 + i * period_ms, camera, 4)

    @rule(camera=st.sampled_from(CAMERAS), place=st.integers(0, 11))
    def discard(self, camera: str, place: int) -> None:
        frames = self.buffer.window([camera], 0, 1 << 62)[0]
        if frames:
            self.buffer.discard(frames[place % len(frames)])

    @rule()
    def clear(self) -> None:
        self.buffer.clear()

    @invariant()
    def is_sorted_and_bounded(self) -> None:
        state = self.buffer.state()
        windows = self.buffer.window(CAMERAS, 0, 1 << 62)
        for frames in windows:
            stamps = [frame.stamp_ns for frame in frames]
            assert stamps == sorted(set(stamps))
            assert not stamps or stamps[-1] - stamps[0] <= self.span_s * NS_PER_S
            past = [stamp // (2 * NS_PER_S) for stamp in stamps if stamp < stamps[-1] - 5 * NS_PER_S]
            assert len(past) == len(set(past))
        assert state.num_bytes == sum(frame.num_bytes for frames in windows for frame in frames)
        assert state.num_bytes <= 12 * FRAME_BYTES
        assert state.num_frames + sum(state.num_dropped.values()) == self.num_pushed


class PastBufferMachine(BufferMachine):
    """The same with a past."""

    past_s = span_s = 15.0


TestBufferMachine = BufferMachine.TestCase
TestPastBufferMachine = PastBufferMachine.TestCase


@given(st.permutations(range(10)))
def test_order_of_arrival_within_the_disorder_does_not_matter(order: list[int]) -> None:
    buffer = new_buffer()
    for i in order:
        buffer.push(raw_frame(i * MAX_DISORDER_NS / NS_PER_S / 10))

    assert stamps_s(buffer) == [i / 10 for i in range(10)]
