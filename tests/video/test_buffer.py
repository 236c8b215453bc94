from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from nvila_ros.types import RawFrame
from nvila_ros.video.buffer import MAX_DISORDER_NS, NS_PER_S, FrameBuffer
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

    jump_ns = buffer.push(raw_frame(90, "front"))

    assert jump_ns == 10 * NS_PER_S
    assert stamps_s(buffer, "front") == [90]
    assert stamps_s(buffer, "rear") == [100]
    assert buffer.state().num_dropped["time_jump"] == 1


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


class BufferMachine(RuleBasedStateMachine):
    """Any order of arrival: the buffer stays sorted, within its bounds, and loses count of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer = new_buffer(horizon_s=5.0, max_bytes=12 * FRAME_BYTES)
        self.num_pushed = 0

    @rule(stamp_ms=st.integers(0, 20_000), camera=st.sampled_from(CAMERAS), width=st.integers(1, 60))
    def push(self, stamp_ms: int, camera: str, width: int) -> None:
        self.buffer.push(raw_frame(stamp_ms / 1000, camera, width))
        self.num_pushed += 1

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
            assert not stamps or stamps[-1] - stamps[0] <= 5 * NS_PER_S
        assert state.num_bytes == sum(frame.num_bytes for frames in windows for frame in frames)
        assert state.num_bytes <= 12 * FRAME_BYTES
        assert state.num_frames + sum(state.num_dropped.values()) == self.num_pushed


TestBufferMachine = BufferMachine.TestCase


@given(st.permutations(range(10)))
def test_order_of_arrival_within_the_disorder_does_not_matter(order: list[int]) -> None:
    buffer = new_buffer()
    for i in order:
        buffer.push(raw_frame(i * MAX_DISORDER_NS / NS_PER_S / 10))

    assert stamps_s(buffer) == [i / 10 for i in range(10)]
