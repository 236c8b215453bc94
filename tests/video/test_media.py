"""Frames are read as they were written, wherever the reading starts, and a broken file says what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from nvila_ros.errors import FrameError, NoFramesError, QueryError
from nvila_ros.video.live_camera import LiveCamera
from nvila_ros.video.media import open_media, read_clip
from nvila_ros.video.video_file import VideoFile

NUM_FRAMES = 90
FPS = 15.0


def _frame(index: int) -> np.ndarray:
    """A frame whose two flat halves spell its index in steps that compression keeps apart."""
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, :32] = 20 + 24 * (index // 10)
    image[:, 32:] = 20 + 24 * (index % 10)
    image[40:] = (255, 0, 0)  # a red foot: swapped channels would show
    return image


def _index(image: np.ndarray) -> int:
    assert image.shape == (48, 64, 3)
    tens, ones = (round((float(image[4:36, 8 + x : 24 + x].mean()) - 20) / 24) for x in (0, 32))
    return 10 * tens + ones


@pytest.fixture(params=[("mjpeg.avi", "MJPG"), ("mpeg4.mp4", "mp4v")], ids=lambda param: param[0])
def video_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, code = request.param
    path = tmp_path / name
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*code), FPS, (64, 48))
    for index in range(NUM_FRAMES):
        writer.write(_frame(index)[..., ::-1])
    writer.release()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(12):
        assert cv2.imwrite(str(tmp_path / f"shot{index}.png"), _frame(index)[..., ::-1])
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_video_tells_its_length_and_rate(video_path: Path) -> None:
    with VideoFile(video_path) as video:
        assert (video.num_frames, video.fps) == (NUM_FRAMES, FPS)


@pytest.mark.parametrize("order", [range(NUM_FRAMES), (89, 0, 45, 44, 46, 46, 3, 88, 40), range(0, 90, 7)], ids=str)
def test_any_frame_is_read_in_any_order(video_path: Path, order: range | tuple[int, ...]) -> None:
    with VideoFile(video_path) as video:
        assert [_index(video.read(i)) for i in order] == list(order)


def test_frames_are_rgb(video_path: Path) -> None:
    with VideoFile(video_path) as video:
        red, green, blue = video.read(0)[44, 4].astype(int)

    assert red > 200
    assert max(green, blue) < 80


def test_truncated_video_is_read_up_to_its_last_frame(tmp_path: Path) -> None:
    whole = tmp_path / "whole.avi"
    writer = cv2.VideoWriter(str(whole), cv2.VideoWriter.fourcc(*"MJPG"), FPS, (64, 48))
    for index in range(NUM_FRAMES):
        writer.write(_frame(index)[..., ::-1])
    writer.release()
    cut = tmp_path / "cut.avi"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])

    with VideoFile(cut) as video:
        assert 10 < video.num_frames < NUM_FRAMES
        assert _index(video.read(video.num_frames - 1)) == video.num_frames - 1


def test_folder_is_read_in_natural_order(folder: Path) -> None:
    media = open_media(folder)

    assert [_index(media.read(i)) for i in range(media.num_frames)] == list(range(12))


def test_single_image_is_a_clip_of_one(folder: Path) -> None:
    clip = read_clip(open_media(folder / "shot7.png"), 8)

    assert [_index(frame.image) for frame in clip] == [7]


@pytest.mark.parametrize(
    ("num_frames", "start_s", "end_s", "expected"),
    [
        (8, 0.0, None, [0, 13, 25, 38, 51, 64, 76, 89]),
        (1, 0.0, None, [0]),
        (3, 1.0, 2.0, [15, 22, 30]),
        (5, 0.2, 0.3, [3, 3, 4, 4, 4]),  # two frames for five places, halves to even as numpy rounds them
        (2, 5.0, 99.0, [75, 89]),
    ],
)
def test_clip_is_spread_evenly_over_its_interval(
    video_path: Path, num_frames: int, start_s: float, end_s: float | None, expected: list[int]
) -> None:
    with VideoFile(video_path) as video:
        clip = read_clip(video, num_frames, start_s, end_s)

    assert [_index(frame.image) for frame in clip] == expected
    assert [frame.stamp_ns for frame in clip] == [round(i * 1e9 / FPS) for i in expected]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((0,), QueryError),
        ((1, -1.0), QueryError),
        ((1, 2.0, 1.0), QueryError),
        ((1, float("nan")), QueryError),
        ((1, 60.0, 61.0), NoFramesError),
        ((1, 0.21, 0.22), NoFramesError),
    ],
)
def test_clip_refuses_an_interval_without_frames(
    folder: Path, arguments: tuple[float, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        read_clip(open_media(folder), *arguments)  # type: ignore[arg-type]


def _bad_sources(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.mp4").write_bytes(b"not a video " * 50)
    (tmp_path / "void.avi").touch()
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    yield tmp_path / "missing.mp4", "no file or folder at"
    yield tmp_path / "empty", "holds no image"
    yield tmp_path / "text.mp4", "cannot be decoded as a video"
    yield tmp_path / "void.avi", "cannot be decoded as a video"
    yield tmp_path / "broken.png", "cannot be decoded as an image"


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, text in _bad_sources(tmp_path):
        with pytest.raises(FrameError, match=text) as error:
            read_clip(open_media(path), 1)
        assert str(path) in str(error.value)


@pytest.mark.parametrize("index", [-1, NUM_FRAMES])
def test_index_beyond_the_video_is_an_error(video_path: Path, index: int) -> None:
    with VideoFile(video_path) as video, pytest.raises(FrameError, match=r"must lie in \[0, 89\]"):
        video.read(index)


def test_live_camera_keeps_frames_spread_over_its_window(video_path: Path) -> None:
    ticks = iter(range(1_000_000_000, 10_000_000_000, 100_000_000))  # one grab every tenth of a second
    camera = LiveCamera(0, cv2.VideoCapture(str(video_path)))

    clip = camera.record_clip(4, 3.0, now_ns=lambda: next(ticks))

    assert [_index(frame.image) for frame in clip] == [0, 10, 20, 30]
    assert [frame.stamp_ns for frame in clip] == [round((1 + k) * 1e9) for k in range(4)]


def test_live_camera_that_stops_is_an_error(video_path: Path) -> None:
    camera = LiveCamera(0, cv2.VideoCapture(str(video_path)))

    with pytest.raises(FrameError, match="gave no frame after 2 of 3"):
        camera.record_clip(3, 1e6, now_ns=iter([0, *[500_000 * 10**9] * 200]).__next__)


def test_missing_camera_is_an_error() -> None:
    with pytest.raises(FrameError, match="camera 97 cannot be opened"):
        LiveCamera(97)
