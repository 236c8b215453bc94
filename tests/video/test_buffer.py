from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nvila_ros.types import NS_PER_S, RawFrame
from nvila_ros.video.buffer import PAST_SHARE, DropReason, FrameBuffer
from tests.strategies import lists_of_all_sizes
from tests.tiny import raw_frame
from tests.video.buffers import CAMERAS, FRAME_BYTES, new_buffer, stamps_s


def test_window_is_closed_on_both_sides() -> None:
    buffer = new_buffer()
    for second in range(5):
        buffer.push(raw_frame(second))

    (frames,) = buffer.window(["camera"], NS_PER_S, 3 * NS_PER_S)

    assert [frame.stamp_ns // NS_PER_S for frame in frames] == [1, 2, 3]


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

    assert buffer.push(raw_frame(2, width=100)) == 0

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
    for quarter in range(21):
        buffer.push(raw_frame(quarter / 4))

    assert stamps_s(buffer) == [quarter / 4 for quarter in range(12, 21)]
    assert (buffer.state().num_dropped["thinned"], buffer.state().num_dropped["aged"]) == (0, 12)


def test_without_a_past_the_oldest_frame_leaves_where_bytes_run_short() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(2.0, 4 * FRAME_BYTES, past_s=2.0)
    for quarter in range(6):
        buffer.push(raw_frame(quarter / 4))

    assert stamps_s(buffer) == [0.5, 0.75, 1, 1.25]
    assert (buffer.state().num_dropped["thinned"], buffer.state().num_dropped["bytes"]) == (0, 2)


def test_past_keeps_frames_up_to_its_age_and_that_age_too() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(1.0, 1 << 20, past_s=4.0)
    for second in range(5):
        buffer.push(raw_frame(second))
    assert stamps_s(buffer) == [0, 1, 2, 3, 4]

    buffer.push(raw_frame(4.001))
    assert stamps_s(buffer) == [1, 2, 3, 4, 4.001]
    assert buffer.state().num_dropped["aged"] == 1


def test_past_is_of_one_frame_a_second_if_nothing_else_is_said() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(0.5, 1 << 20, past_s=60.0)
    for quarter in range(13):
        buffer.push(raw_frame(quarter / 4))

    assert stamps_s(buffer) == [0, 1, 2, 2.5, 2.75, 3]


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


def test_short_of_bytes_frames_are_thinned_while_the_past_has_no_more_than_its_share() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(10.0, 4 * FRAME_BYTES, past_s=60.0, past_hz=1.0)
    for quarter in range(5):
        buffer.push(raw_frame(quarter / 4))

    assert stamps_s(buffer) == [0, 0.5, 0.75, 1]
    assert (buffer.state().num_dropped["thinned"], buffer.state().num_dropped["bytes"]) == (1, 0)


def test_short_of_bytes_all_but_the_newest_frame_may_be_thinned() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(0.3, 4 * FRAME_BYTES, past_s=60.0, past_hz=1.0)
    for stamp, width in ((0.0, 4), (0.25, 4), (0.5, 12)):  # the last has the bytes of three
        buffer.push(raw_frame(stamp, width=width))

    assert stamps_s(buffer) == [0, 0.5]
    assert (buffer.state().num_dropped["thinned"], buffer.state().num_dropped["bytes"]) == (1, 0)


def test_short_of_bytes_the_camera_with_the_oldest_frame_is_thinned() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(10.0, 5 * FRAME_BYTES, past_s=60.0, past_hz=1.0)
    for stamp, camera in ((0, "front"), (0.2, "front"), (0.9, "front"), (0.5, "rear"), (0.6, "rear"), (1, "front")):
        buffer.push(raw_frame(stamp, camera))

    assert (stamps_s(buffer, "front"), stamps_s(buffer, "rear")) == ([0, 0.9, 1], [0.5, 0.6])


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
