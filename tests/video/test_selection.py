"""The window that a query means, and the frames of it that the model is shown."""

from __future__ import annotations

import contextlib

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import FrameError, NoFramesError, QueryError
from nvila_ros.types import NS_PER_S, EncodedImage, Query, RawFrame, RawImage
from nvila_ros.video import selection
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.selection import MAX_COMPARED, SPREAD, Freshness, measure_changes, select_frames, window_ns
from nvila_ros.world.events import sample_event_scene
from nvila_ros.world.rendering import render
from nvila_ros.world.scene import Scene
from tests.strategies import lists_of_all_sizes
from tests.tiny import raw_frame

ALL_S = 1e6
NUM_SCENES = 30
CLIP_S, CLIP_HZ, JUMP_S = 10.0, 10.0, 0.5


def held(*stamps_by_camera: tuple[str, list[float]]) -> FrameBuffer[RawFrame]:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(1000.0, 1 << 20)
    for camera, stamps in stamps_by_camera:
        for stamp in stamps:
            buffer.push(raw_frame(stamp, camera))
    return buffer


def query(**fields: object) -> Query:
    return Query(**({"query_id": "a", "question": "?", "cameras": ("camera",)} | fields))  # type: ignore[arg-type]


def seconds(frames: list[RawFrame]) -> list[float]:
    return [frame.stamp_ns / NS_PER_S for frame in frames]


def test_cameras_share_the_frames_and_come_in_capture_order() -> None:
    buffer = held(("left", [1, 2, 3, 4]), ("right", [1.5, 2.5, 3.5]))

    frames = select_frames(buffer, query(cameras=("left", "right"), num_frames=4, window_s=10))

    assert [(frame.camera, frame.stamp_ns / NS_PER_S) for frame in frames] == [
        ("left", 1),
        ("right", 1.5),
        ("right", 3.5),
        ("left", 4),
    ]


def test_camera_without_a_frame_in_the_window_is_named_and_not_left_out() -> None:
    buffer = held(("left", [1, 2]), ("right", [50, 51, 52]))

    with pytest.raises(NoFramesError) as caught:
        select_frames(buffer, query(cameras=("left", "right", "side"), num_frames=3, window_s=5))

    assert str(caught.value) == (
        "no frame of left, side in [47.000, 52.000] s; ask right alone by cameras; "
        "the buffer holds 2 from 1.000 to 2.000 s"
    )


def test_window_ends_at_the_newest_frame_of_the_cameras_asked() -> None:
    buffer = held(("left", [1, 2, 3]), ("right", [90]))

    assert seconds(select_frames(buffer, query(cameras=("left",), num_frames=8, window_s=1))) == [2, 3]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"start_ns": 2 * NS_PER_S, "end_ns": 3 * NS_PER_S}, [2, 3]),
        ({"ago_start_s": 10.0, "ago_end_s": 5.0}, [10, 11, 12, 13, 14, 15]),
        ({"ago_start_s": 2.5}, [18, 19, 20]),
        ({"ago_start_s": 7.0, "ago_end_s": 7.0}, [13]),
        ({"ago_start_s": 5.0, "window_s": 1.0}, [15, 16, 17, 18, 19, 20]),
        ({"start_ns": 0, "end_ns": NS_PER_S, "ago_start_s": 5.0}, [1]),
        ({"window_s": 1.5}, [19, 20]),
    ],
    ids=str,
)
def test_window_is_given_by_stamps_by_ages_or_by_its_length(fields: dict[str, float], expected: list[float]) -> None:
    buffer = held(("camera", list(range(1, 21))))

    assert seconds(select_frames(buffer, query(num_frames=8, **fields))) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"cameras": ("rear",)},
            r"no frame of rear; the buffer holds none of them; is the camera publishing, .*see /diagnostics$",
        ),
        ({"cameras": ("rear",), "window_s": 2.0}, r"no frame of rear in the last 2 s; the buffer holds none"),
        ({"cameras": ("rear",), "ago_start_s": 9.0}, r"no frame of rear from 9 to 0 s before the newest; the buffer"),
        (
            {"cameras": ("rear",), "start_ns": 0, "end_ns": NS_PER_S},
            r"no frame of rear in \[0.000, 1.000\] s; the buffer",
        ),
        (
            {"start_ns": 5 * NS_PER_S, "end_ns": 6 * NS_PER_S},
            r"in \[5.000, 6.000\] s; the buffer holds 3 from 10.000 to 20.000 s: that was 4.000 s too early, .*past_s",
        ),
        ({"ago_start_s": 60.0, "ago_end_s": 30.0}, r"holds 3 from 10.000 to 20.000 s: that was 20.000 s too early"),
        (
            {"ago_start_s": 9.0, "ago_end_s": 6.0},
            r"in \[11.000, 14.000\] s; the buffer holds 3 from 10.000 to 20.0.* s$",
        ),
        ({"start_ns": 21 * NS_PER_S, "end_ns": 22 * NS_PER_S}, r"the buffer holds 3 from 10.000 to 20.000 s$"),
    ],
    ids=str,
)
def test_empty_window_names_what_the_buffer_holds(fields: dict[str, object], message: str) -> None:
    buffer = held(("camera", [10, 15, 20]))

    with pytest.raises(NoFramesError, match=message):
        select_frames(buffer, query(**fields))


def test_unknown_sampling_is_refused_by_name() -> None:
    with pytest.raises(QueryError, match="sampling must be one of uniform, recent, change, anchored, got 'dense'"):
        select_frames(held(("camera", [1])), query(sampling="dense"))


def test_change_of_frames_that_cannot_be_read_is_an_error() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(10.0, 1 << 20)
    for i in range(3):
        image = RawImage(data=np.zeros(16, np.uint8), encoding="32FC1", width=2, height=2, step=8)
        buffer.push(RawFrame(image=image, stamp_ns=i))

    with pytest.raises(FrameError, match="unknown image encoding '32FC1'"):
        select_frames(buffer, query(window_s=ALL_S, num_frames=2, sampling="change"))


@pytest.mark.parametrize("sampling", SPREAD)
@given(
    stamps_ms=lists_of_all_sizes(st.integers(0, 20_000), min_size=1, max_size=40, unique=True).map(sorted),
    num_frames=st.integers(1, 50),
    values=st.lists(st.integers(0, 255), min_size=40, max_size=40),
)
def test_chosen_frames_are_distinct_in_order_and_end_with_the_newest(
    sampling: str, stamps_ms: list[int], num_frames: int, values: list[int]
) -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(1000.0, 1 << 20)
    for stamp_ms, value in zip(stamps_ms, values, strict=False):
        buffer.push(flat_frame(stamp_ms * 10**6, value))

    frames = select_frames(buffer, query(window_s=ALL_S, num_frames=num_frames, sampling=sampling))

    stamps = [frame.stamp_ns // 10**6 for frame in frames]
    assert stamps == sorted(set(stamps) & set(stamps_ms))
    assert stamps[-1] == stamps_ms[-1]
    assert len(stamps) == min(num_frames, len(stamps_ms))


def flat_frame(stamp_ns: int, value: int) -> RawFrame:
    image = RawImage(data=np.full(4, value, np.uint8), encoding="mono8", width=2, height=2, step=2)
    return RawFrame(image=image, stamp_ns=stamp_ns)


@pytest.mark.parametrize("num_frames", [8, 200])
def test_number_of_frames_that_are_compared_is_bounded(num_frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    thumbnail = selection.thumbnail
    monkeypatch.setattr(selection, "thumbnail", lambda frame: compared.append(frame.stamp_ns) or thumbnail(frame))
    buffer: FrameBuffer[RawFrame] = FrameBuffer(1000.0, 1 << 20)
    for i in range(3000):
        buffer.push(flat_frame(i * NS_PER_S // 30 + (50 * NS_PER_S if i > 2990 else 0), i % 3))

    frames = select_frames(buffer, query(window_s=ALL_S, num_frames=num_frames, sampling="change"))

    assert num_frames < len(compared) <= max(MAX_COMPARED, 2 * num_frames)
    assert len(frames) == num_frames


def test_window_that_slides_on_meets_the_same_frames_again(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: set[int] = set()
    thumbnail = selection.thumbnail
    monkeypatch.setattr(selection, "thumbnail", lambda frame: compared.add(frame.stamp_ns) or thumbnail(frame))
    buffer: FrameBuffer[RawFrame] = FrameBuffer(1000.0, 1 << 20)
    before: set[int] = set()
    for i in range(1200):
        buffer.push(flat_frame(i * NS_PER_S // 30, i % 3))
        if i in (1100, 1130):
            before = set(compared)
            select_frames(buffer, query(window_s=30.0, num_frames=8, sampling="change"))

    assert len(compared - before) <= 10


def test_noise_is_no_change_and_what_stands_out_is() -> None:
    rng = np.random.default_rng(0)
    pictures = [np.clip(rng.normal(100, 3, (32, 32)), 0, 255).round().astype(np.uint8) for _ in range(60)]
    for picture in pictures[30:]:
        picture[:8, :8] += 100

    changes = measure_changes(pictures)

    assert changes.argmax() == 29
    assert changes[29] > np.delete(changes, 29).sum()


def test_change_driven_sampling_shows_what_happens_briefly() -> None:
    """One object jumps away for a quarter of a second of a 10 s clip: is it seen away in one of 8 frames?"""
    num_seen = dict.fromkeys(SPREAD, 0)
    for seed in range(NUM_SCENES):
        scene, buffer = film(seed)
        for sampling in SPREAD:
            frames = select_frames(buffer, query(window_s=ALL_S, num_frames=8, sampling=sampling))
            num_seen[sampling] += sees_jump(scene, frames)

    assert num_seen["change"] >= 0.9 * NUM_SCENES
    assert num_seen["uniform"] <= 0.4 * NUM_SCENES


def sees_jump(scene: Scene, frames: list[RawFrame]) -> bool:
    (jump,) = [obj.jump for obj in scene.objects if obj.jump and obj.jump_direction != "still"]
    return any(jump.share(frame.stamp_ns / NS_PER_S) > 0.9 for frame in frames)


def film(seed: int) -> tuple[Scene, FrameBuffer[RawFrame]]:
    """Draw a scene in which just one object jumps, and film it under its changing light and noise."""
    rng = np.random.default_rng(seed)
    jumps = (JUMP_S / CLIP_S, JUMP_S / CLIP_S)
    scene = sample_event_scene(rng, aspect=16 / 9, duration_s=CLIP_S, has_pair=False, jumps=jumps)
    while sum(obj.jump_direction != "still" for obj in scene.objects) != 1:
        scene = sample_event_scene(rng, aspect=16 / 9, duration_s=CLIP_S, has_pair=False, jumps=jumps)
    buffer: FrameBuffer[RawFrame] = FrameBuffer(100.0, 1 << 30)
    for i in range(round(CLIP_S * CLIP_HZ)):
        pixels = render(scene, i / CLIP_HZ, 160, 90).reshape(-1)
        image = RawImage(data=pixels, encoding="rgb8", width=160, height=90, step=480)
        buffer.push(RawFrame(image=image, stamp_ns=round(i / CLIP_HZ * NS_PER_S)))
    return scene, buffer


def test_frames_that_never_fitted_are_told() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(10.0, 10)
    buffer.push(raw_frame(1))

    with pytest.raises(NoFramesError, match="and 1 were each larger than buffer_bytes; raise it"):
        select_frames(buffer, Query(query_id="a", question="?", cameras=("camera",)))


@pytest.mark.parametrize(
    ("fields", "stalled"),
    [
        ({"cameras": ("front",)}, ""),
        (
            {"cameras": ("front", "rear"), "num_frames": 2},
            r"rear has stalled: its newest frame, of 5.000 s, is 3.000 s older",
        ),
        ({"cameras": ("front", "side"), "num_frames": 2}, "no frame of side has come"),
        ({"cameras": ("rear",), "ago_start_s": 2.0}, "rear has stalled"),
        ({"cameras": ("rear",), "start_ns": 0, "end_ns": 6 * NS_PER_S}, ""),
    ],
)
def test_camera_that_has_stalled_is_not_asked_about_its_present(fields: dict[str, object], stalled: str) -> None:
    buffer = held(("front", [10]), ("rear", [5]))
    query = Query(**{"query_id": "a", "question": "?", "window_s": 5.0, **fields})  # type: ignore[arg-type]

    if "side" not in query.cameras:
        assert select_frames(buffer, query)
    with pytest.raises(NoFramesError, match=stalled) if stalled else contextlib.nullcontext():
        assert select_frames(buffer, query, Freshness(8 * NS_PER_S, 12 * NS_PER_S))


def test_frame_ahead_of_the_clock_is_an_error_of_the_clocks() -> None:
    buffer = held(("front", [10]), ("rear", [15]))
    fresh = Freshness(8 * NS_PER_S, 12 * NS_PER_S)

    assert select_frames(buffer, query(cameras=("front",)), fresh)
    with pytest.raises(NoFramesError, match=r"clocks of rear and of this node disagree: .* 3.000 s further ahead"):
        select_frames(buffer, query(cameras=("front", "rear"), num_frames=2), fresh)
    assert select_frames(buffer, query(cameras=("rear",), start_ns=0, end_ns=20 * NS_PER_S), fresh)


@pytest.mark.parametrize("age_s", [0.7, 0.1, 1.1, 3.3, 123.4, 599.9])
def test_frame_exactly_as_old_as_an_end_of_the_window_lies_inside(age_s: float) -> None:
    newest_ns, age_ns = 10**12, round(age_s * NS_PER_S)
    carried = float(np.float32(age_s))  # as a message has it

    assert window_ns(query(window_s=carried), newest_ns)[0] <= newest_ns - age_ns
    start_ns, end_ns = window_ns(query(ago_start_s=carried, ago_end_s=carried), newest_ns)
    assert start_ns <= newest_ns - age_ns <= end_ns
    assert end_ns - start_ns <= age_ns / 1e6  # a microsecond in a second


def jpeg_frame(stamp_s: float, level: int, *, is_cut: bool = False) -> RawFrame:
    data = np.asarray(cv2.imencode(".png", np.full((8, 8, 3), level, np.uint8))[1]).reshape(-1)
    data = np.concatenate([data[:40], np.zeros(8, np.uint8), data[48:]]) if is_cut else data
    image = EncodedImage(data=data, format="png", width=8, height=8)
    return RawFrame(image=image, stamp_ns=round(stamp_s * NS_PER_S))


def test_damaged_frame_is_dropped_where_changes_are_compared() -> None:
    buffer: FrameBuffer[RawFrame] = FrameBuffer(1000.0, 1 << 20)
    for k in range(8):
        buffer.push(jpeg_frame(k, 200 if k == 5 else 10, is_cut=k in (2, 7)))

    chosen = select_frames(buffer, query(num_frames=4, window_s=100, sampling="change"))

    assert not {2.0, 7.0} & set(seconds(chosen))
    assert 5.0 in seconds(chosen)
    assert buffer.state().num_dropped["damaged"] == 2
