"""Any container gives each frame with the file's own time, in any order, and what is damaged is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from nvila_ros.errors import FrameError
from nvila_ros.video.media import open_media, read_clip
from nvila_ros.video.video_file import VideoFile
from nvila_ros.video.video_stream import VideoStream
from tests.video.video_files import even_times, number_of, picture, write_video

VARIABLE = [k * 1000 for k in range(12)] + [12000 + 20 * k for k in range(40)]
JITTER = np.cumsum([0, *np.random.default_rng(0).integers(5, 120, 79)]).tolist()
EVEN = even_times(80)
# name of the file, times, codec, options of the codec, options of the container
FILES: list[tuple[str, list[int], str, dict[str, str], dict[str, str]]] = [
    ("even.mp4", EVEN, "libx264", {}, {}),
    ("variable.mp4", VARIABLE, "libx264", {}, {}),
    ("open_groups.mp4", EVEN, "libx264", {"x264-params": "open-gop=1:bframes=3:scenecut=0"}, {}),
    ("fragments.mp4", EVEN, "libx264", {}, {"movflags": "frag_keyframe+empty_moov"}),
    ("late_start.mp4", [t + 700 for t in EVEN], "libx264", {}, {}),
    ("variable.mkv", VARIABLE, "libx264", {}, {}),
    ("no_b_frames.mov", JITTER, "mpeg4", {}, {}),
    ("jitter.webm", JITTER, "libvpx", {"deadline": "realtime"}, {}),
    ("hidden_frames.webm", EVEN, "libvpx", {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "200000"}, {}),
    ("hidden_frames_vp9.webm", EVEN, "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}, {}),
    ("live.webm", JITTER, "libvpx", {"deadline": "realtime"}, {"live": "1"}),
    ("live.mkv", EVEN, "libx264", {}, {"live": "1"}),
    ("even.ts", EVEN, "libx264", {}, {}),
    ("raw.h264", EVEN, "libx264", {}, {}),
    ("raw.h265", EVEN, "libx265", {"x265-params": "log-level=none"}, {}),
    ("stream.mjpeg", EVEN, "mjpeg", {}, {}),
    ("even.avi", EVEN, "mjpeg", {}, {}),
    ("one_key.mp4", EVEN, "libx264", {"g": "1000"}, {}),
    ("one.mp4", [0], "libx264", {}, {}),
]


@pytest.fixture(scope="module", params=FILES, ids=lambda each: each[0])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    name, times_ms, codec, options, format_options = request.param
    path = tmp_path_factory.mktemp("videos") / name
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    return write_video(path, times_ms, codec, options=options, format_options=format_options, pix_fmt=pix_fmt), times_ms


def read_slowly(path: Path) -> Iterator[tuple[float | None, np.ndarray]]:
    """Decode a file from its beginning to its end: the slow obvious way."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.time, frame.to_ndarray(format="rgb24")


def test_frames_and_times_are_those_of_a_whole_decode(written: tuple[Path, list[int]]) -> None:
    path, _ = written
    slow = list(read_slowly(path))

    with VideoFile(path) as video:
        assert video.num_frames == len(slow)
        if slow[0][0] is not None:
            since = [time - slow[0][0] for time, _ in slow]
            np.testing.assert_allclose(video.stamps_ns / 1e9, since, atol=1e-6)
        rng = np.random.default_rng(1)
        for index in [*rng.integers(0, len(slow), 25).tolist(), len(slow) - 1, 0]:
            np.testing.assert_array_equal(video.read(index), slow[index][1])


def test_each_frame_is_shown_when_it_was_written(written: tuple[Path, list[int]]) -> None:
    path, times_ms = written
    # A container of raw frames knows no time, and AVI one rate only.
    is_timed = path.suffix in (".mp4", ".mkv", ".mov", ".webm", ".ts")

    with VideoFile(path) as video:
        numbers = [number_of(video.read(index)) for index in range(video.num_frames)]
        assert numbers == list(range(len(times_ms)))
        if is_timed:
            since_s = (np.array(times_ms) - times_ms[0]) / 1e3
            np.testing.assert_allclose(video.stamps_ns / 1e9, since_s, atol=1e-3)
        assert (np.diff(video.stamps_ns) > 0).all()


def test_pixels_are_those_of_opencv(tmp_path: Path) -> None:
    for name, codec in (("a.mp4", "libx264"), ("b.avi", "mjpeg")):
        path = write_video(tmp_path / name, EVEN, codec, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")
        capture = cv2.VideoCapture(str(path))
        with VideoFile(path) as video:
            for index in range(5):
                np.testing.assert_array_equal(video.read(index), capture.read()[1][..., ::-1])
        capture.release()


def test_window_is_cut_by_the_times_of_the_file(tmp_path: Path) -> None:
    path = write_video(tmp_path / "variable.mp4", VARIABLE)

    clip = read_clip(open_media(path), 4, 0.0, 10.0)

    assert [number_of(frame.image) for frame in clip] == [0, 3, 7, 10]
    assert [frame.stamp_ns for frame in clip] == [0, 3 * 10**9, 7 * 10**9, 10**10]
    with VideoFile(path) as video:
        assert video.fps == pytest.approx(51 / 12.78, rel=1e-4)


def test_frames_that_an_edit_list_hides_are_not_shown(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", EVEN, options={"bf": "0"}, key_every=40)
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        video = source.streams.video[0]
        stream = (
            target.add_stream_from_template(video)
            if hasattr(target, "add_stream_from_template")
            else (target.add_stream(template=video))
        )
        for packet in source.demux(video):
            if packet.size:  # what lies before zero is decoded and not shown
                early = round(0.4 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - early, packet.dts - early, stream
                target.mux(packet)

    with VideoFile(cut) as video:
        assert [number_of(video.read(index)) for index in (0, 1, 69)] == [10, 11, 79]
        assert video.num_frames == 70


def test_rotation_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV writes no rotation")
        stream.set_display_rotation(90)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(1), format="rgb24")))
        container.mux(stream.encode(None))

    with VideoFile(path) as video:
        np.testing.assert_array_equal(video.read(0), cv2.VideoCapture(str(path)).read()[1][..., ::-1])
        assert video.read(0).shape == (128, 64, 3)


def damage(path: Path, number: int) -> Path:
    """Overwrite the second half of a packet."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    at, size = packets[number]
    content = bytearray(path.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, size - size // 2 - 2, np.uint8)
    content[at + size // 2 : at + size - 2] = noise.tobytes()
    damaged = path.with_name(f"damaged{path.suffix}")
    damaged.write_bytes(content)
    return damaged


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mjpeg"), ("a.mov", "mpeg4")])
def test_damaged_frame_is_refused_with_those_that_are_built_on_it(tmp_path: Path, name: str, codec: str) -> None:
    is_jpeg = codec == "mjpeg"
    whole = write_video(
        tmp_path / name,
        EVEN,
        codec,
        options={} if is_jpeg else {"bf": "0"},
        pix_fmt="yuvj420p" if is_jpeg else "yuv420p",
    )

    lost = [20] if is_jpeg else range(20, 30)
    with VideoFile(damage(whole, 20)) as video:
        for index in range(video.num_frames):
            if index not in lost:
                assert number_of(video.read(index)) == index
                continue
            with pytest.raises(FrameError, match="cannot be decoded; the file is damaged"):
                video.read(index)
        assert video.num_frames == 80


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mkv"])
def test_recording_that_was_cut_off_is_read_up_to_its_last_whole_frame(tmp_path: Path, name: str) -> None:
    format_options = {"movflags": "faststart"} if name == "a.mp4" else {}
    whole = write_video(tmp_path / name, EVEN, options={"bf": "0"}, format_options=format_options)
    cut = tmp_path / f"cut_{name}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])

    with VideoFile(cut) as video:
        assert 20 < video.num_frames < 79
        assert [number_of(video.read(index)) for index in range(video.num_frames)] == list(range(video.num_frames))


def test_few_frames_are_decoded_to_show_a_clip_of_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "long.mp4", even_times(1000, 20), options={"preset": "ultrafast"})
    decoded = [0]
    frames = VideoStream.frames

    def count(stream: VideoStream) -> Iterator[tuple[int | None, Any]]:
        for each in frames(stream):
            decoded[0] += 1
            yield each

    monkeypatch.setattr(VideoStream, "frames", count)
    clip = read_clip(open_media(path), 8)

    assert [frame.stamp_ns // 10**6 for frame in clip] == [round(k * 999 / 7) * 20 for k in range(8)]
    assert decoded[0] <= 3 + 9 * 10  # what is compared on opening, and at most a group for each frame


def test_stream_whose_times_jump_back_is_shown_in_order(tmp_path: Path) -> None:
    one = write_video(tmp_path / "one.ts", even_times(20))
    two = tmp_path / "two.ts"
    two.write_bytes(one.read_bytes() * 2)

    with VideoFile(two) as video:
        numbers = [number_of(video.read(index)) for index in range(video.num_frames)]
        # At the seam the container reports a gap, and the frames that it may concern count as damaged.
        assert numbers == [*range(17), *range(20)]
        assert (np.diff(video.stamps_ns) > 0).all()


@pytest.mark.parametrize("name", [b"2024-05-01T12:30:00.mp4", b"\xe9t\xe9.mp4", "\N{VIDEO CAMERA}.mp4".encode()])
def test_any_name_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    source = write_video(tmp_path / "plain.mp4", even_times(5))
    monkeypatch.chdir(tmp_path)
    shutil.copy(source, os.fsdecode(name))

    assert len(read_clip(open_media(os.fsdecode(name)), 4)) == 4


@pytest.mark.parametrize(
    "content",
    [
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        b"ffconcat version 1.0\nfile 'http://127.0.0.1:9/a.ts'\n",
    ],
)
def test_playlist_reaches_no_network(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list.mp4"
    path.write_bytes(content)

    with pytest.raises(FrameError, match=r"cannot be decoded as a video|holds no"):
        VideoFile(path)


def test_sound_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate, frame.pts = 44100, 0
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)

    with pytest.raises(FrameError, match="holds no video; it has sound or data only"):
        VideoFile(path)
