"""Frames come out of real bags as they went in, by their captures; bags that are broken are refused by name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="reads bags; comes with nvila_ros[bags]")

from mcap.writer import CompressionType
from mcap_ros2.writer import Writer
from rosbags.rosbag2 import StoragePlugin

from nvila_ros.errors import FrameError, NoFramesError, NvilaError
from nvila_ros.video import bags
from nvila_ros.video.bags import camera_topics, index_topic, is_bag, read_frames
from tests.video.bag_files import T0_NS, TYPES, compressed, film, gray_image, image, text, write_bag, write_mcap


def brightness(path: Path, topic: str, indices: list[int]) -> list[int]:
    return [int(frame.image[0, 0, 0]) for frame in read_frames(path, topic, indices)]


@pytest.mark.parametrize("plugin", StoragePlugin)
def test_folder_of_a_recorder_is_read(tmp_path: Path, plugin: StoragePlugin) -> None:
    folder = write_bag(tmp_path / "drive", [*film(), text("hello", T0_NS)], plugin)

    assert is_bag(folder)
    assert camera_topics(folder) == ["/camera"]
    assert brightness(folder, "", [0, 4, 9]) == [0, 40, 90]


@pytest.mark.parametrize("compression", CompressionType)
@pytest.mark.parametrize("has_checksums", [True, False])
def test_file_of_another_writer_is_read(tmp_path: Path, compression: CompressionType, has_checksums: bool) -> None:
    path = tmp_path / "other.mcap"
    definition, _ = TYPES.generate_msgdef("sensor_msgs/msg/Image", ros_version=2)
    with path.open("wb") as file, Writer(file, 8000, compression, has_checksums) as writer:
        schema = writer.register_msgdef("sensor_msgs/msg/Image", definition)
        for each in film():
            message = SimpleNamespace(**vars(each.message) | {"data": each.message.data.tobytes()})
            writer.write_message(each.topic, schema, message, log_time=each.logged_ns)

    assert brightness(path, "/camera", list(range(10))) == [10 * k for k in range(10)]


def test_pixels_and_names_come_out_as_they_went_in(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    path = write_mcap(tmp_path / "a", [image(rgb[..., ::-1], T0_NS, "bgr8"), compressed(rgb, T0_NS + 7)])

    plain, packed = read_frames(path, "/camera", [0])[0], read_frames(path, "/camera/compressed", [0])[0]

    assert np.array_equal(plain.image, rgb)
    assert np.array_equal(packed.image, rgb)
    assert (plain.stamp_ns, plain.camera, plain.frame_id) == (T0_NS, "/camera", "optical")
    assert packed.stamp_ns == T0_NS + 7


def test_frames_are_in_order_of_capture_and_unset_stamps_are_those_of_arrival(tmp_path: Path) -> None:
    late = image(gray_image(1), T0_NS)
    early = image(gray_image(2), T0_NS - 10)  # sent later than it was taken
    unset = image(gray_image(3), 0)
    written = [late, type(early)(early.topic, late.logged_ns + 1, early.message)]
    written += [type(unset)(unset.topic, T0_NS + 99, unset.message)]
    path = write_mcap(tmp_path / "a", written)

    assert index_topic(path, "/camera").stamps_ns.tolist() == [T0_NS - 10, T0_NS, T0_NS + 99]
    assert brightness(path, "/camera", [0, 1, 2]) == [2, 1, 3]


def test_messages_that_arrived_at_once_are_told_apart(tmp_path: Path) -> None:
    frames = [image(gray_image(k), T0_NS + k) for k in range(3)]
    path = write_mcap(tmp_path / "a", [type(each)(each.topic, T0_NS, each.message) for each in frames])

    assert brightness(path, "/camera", [2, 0, 1]) == [2, 0, 1]


def test_windows_and_moments_are_found(tmp_path: Path) -> None:
    index = index_topic(write_mcap(tmp_path / "a", film(num_frames=10, period_s=0.5)), "/camera")

    assert index.between(0, None, 4) == [0, 3, 6, 9]
    assert index.between(1.0, 2.5, 99) == [2, 3, 4, 5]
    assert index.between(1.0, 2.5, 1) == [5]
    assert (index.nearest(0.0), index.nearest(1.3), index.nearest(1.25), index.nearest(4.5)) == (0, 3, 2, 9)
    assert index.at([T0_NS, T0_NS + 2_000_000_000]) == [0, 4]


@pytest.mark.parametrize(("start_s", "end_s"), [(0.6, 0.9), (4.6, None), (7, 9)])
def test_empty_window_is_refused(tmp_path: Path, start_s: float, end_s: float | None) -> None:
    index = index_topic(write_mcap(tmp_path / "a", film()), "/camera")

    with pytest.raises(NoFramesError, match=r"no frame from .* the topic ends at 4\.500 s"):
        index.between(start_s, end_s, 8)
    with pytest.raises(NoFramesError, match=r"no frame at 4\.6 s"):
        index.nearest(4.6)
    with pytest.raises(NoFramesError, match=f"no frame captured at {T0_NS + 1} ns"):
        index.at([T0_NS + 1])


def test_index_is_remembered_until_the_bag_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_mcap(tmp_path / "a", film(num_frames=3))
    first = index_topic(path, "/camera")
    opened: list[Path] = []
    open_bag = bags.open_bag
    monkeypatch.setattr(bags, "open_bag", lambda path: (opened.append(path), open_bag(path))[1])

    assert index_topic(path, "/camera") is first
    assert not opened

    path.write_bytes(write_mcap(tmp_path / "b", film(num_frames=5)).read_bytes())
    assert len(index_topic(path, "/camera").stamps_ns) == 5


def test_topic_must_be_there_and_carry_images(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "a", [*film(2), *film(2, topic="/rear"), text("x", T0_NS)])

    with pytest.raises(FrameError, match=r"has no topic '/front'; those that carry images are /camera, /rear"):
        index_topic(path, "/front")
    with pytest.raises(FrameError, match=r"needs a topic to be named; those that carry images are /camera, /rear"):
        index_topic(path)
    with pytest.raises(FrameError, match=r"must carry images, got std_msgs/msg/String; use /camera, /rear"):
        index_topic(path, "/chatter")


def test_image_that_nothing_decodes_is_named_with_its_place(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "a", [image(gray_image(1), T0_NS, "rgb4")])

    with pytest.raises(FrameError, match=rf"captured at {T0_NS} ns on /camera of bag .*unknown image encoding 'rgb4'"):
        read_frames(path, "/camera", [0])


def test_message_encoding_must_be_cdr(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "a", film(2))
    path.write_bytes(path.read_bytes().replace(b"\x03\x00\x00\x00cdr", b"\x03\x00\x00\x00cbo"))

    with pytest.raises(FrameError, match="must be encoded as cdr, got 'cbo'"):
        index_topic(path, "/camera")


def test_bag_that_is_not_there_is_told_apart_from_a_broken_one(tmp_path: Path) -> None:
    (tmp_path / "empty.mcap").touch()

    with pytest.raises(FileNotFoundError):
        camera_topics(tmp_path / "none.mcap")
    with pytest.raises(FrameError, match="cannot be read"):
        camera_topics(tmp_path / "empty.mcap")
    with pytest.raises(FrameError, match="cannot be read"):
        camera_topics(tmp_path)


@pytest.mark.parametrize("plugin", StoragePlugin)
def test_damaged_bags_are_refused_or_read_but_never_crash(tmp_path: Path, plugin: StoragePlugin) -> None:
    whole = next(p for p in write_bag(tmp_path / "a", film(), plugin).iterdir() if p.suffix in bags.BAG_SUFFIXES)
    content, rng = whole.read_bytes(), np.random.default_rng(0)
    damaged = tmp_path / f"damaged{whole.suffix}"
    told: list[str] = []
    for trial in range(200):
        data = bytearray(content[: rng.integers(len(content)) if trial % 2 else None])
        for at in rng.integers(len(data), size=trial % 3) if data else ():
            data[at] ^= 0x55
        damaged.write_bytes(data)
        try:
            read_frames(damaged, "/camera", [0])
        except NvilaError as error:
            told.append(str(error))

    assert len(told) >= 90
    assert all(str(damaged) in each for each in told)


def test_recording_that_was_cut_off_says_how_to_mend_it(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "a", film())
    path.write_bytes(path.read_bytes()[:-1000])

    with pytest.raises(FrameError, match="mcap recover"):
        index_topic(path, "/camera")
