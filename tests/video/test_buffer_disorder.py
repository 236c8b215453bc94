"""Frames that come late, stamps that jump back, and frames that turn out to be damaged."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.types import NS_PER_S, RawFrame
from nvila_ros.video.buffer import MAX_DISORDER_NS, FrameBuffer
from tests.tiny import raw_frame
from tests.video.buffers import CAMERAS, new_buffer, stamps_s


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


@given(st.permutations(range(10)))
def test_order_of_arrival_within_the_disorder_does_not_matter(order: list[int]) -> None:
    buffer = new_buffer()
    for i in order:
        buffer.push(raw_frame(i * MAX_DISORDER_NS / NS_PER_S / 10))

    assert stamps_s(buffer) == [i / 10 for i in range(10)]


def test_newest_frame_of_the_past_is_the_newest_of_all_where_those_after_it_are_damaged() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(0.1, 1 << 20, past_s=60.0, past_hz=1.0)
    frames = {stamp: raw_frame(stamp) for stamp in (1.0, 2.0, 3.0, 4.0)}
    for frame in frames.values():
        buffer.push(frame)

    buffer.discard(raw_frame(4.0, "side"))
    buffer.discard(frames[4.0])

    assert buffer.newest_ns(["camera"]) == 3 * NS_PER_S
    assert stamps_s(buffer) == [1, 2, 3]
    assert buffer.push(raw_frame(2.5)) == 0  # its period has a frame already
    assert stamps_s(buffer) == [1, 2, 3]
    assert buffer.state().num_dropped["thinned"] == 1
