"""Frames come out of real bags as they went in, by their captures; bags that are broken are refused by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rosbags", reason="reads bags; comes with nvila_ros[bags]")

from mcap.writer import CompressionType
from mcap.writer import Writer as McapWriter
from mcap_ros2.writer import Writer
from rosbags.rosbag2 import StoragePlugin

from nvila_ros.errors import FrameError, NoFramesError, NvilaError
from nvila_ros.video import bags
from nvila_ros.video.bag_layout import BAG_SUFFIXES, is_bag
from nvila_ros.video.bags import camera_topics, index_topic, read_frames
from tests.video.bag_files import (
    LAG_NS,
    T0_NS,
    TYPES,
    Written,
    compressed,
    film,
    gray_image,
    image,
    text,
    write_bag,
    write_mcap,
)


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
    whole = next(p for p in write_bag(tmp_path / "a", film(), plugin).iterdir() if p.suffix in BAG_SUFFIXES)
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


def shown(path: Path, num_frames: int = 8) -> list[int]:
    """Return the numbers of the frames that a clip of a whole bag shows, by their brightness."""
    return [value // 4 for value in brightness(path, "", index_topic(path).between(0.0, None, num_frames))]


def logged(stamps_s: Sequence[float]) -> list[Written]:
    """Frames that the bag got at 10 Hz, whatever the stamps that they carry; number k has brightness 4 k."""
    frames = [image(gray_image(4 * k), T0_NS + round(stamp_s * 1e9)) for k, stamp_s in enumerate(stamps_s)]
    return [replace(frame, logged_ns=T0_NS + k * 10**8) for k, frame in enumerate(frames)]


SET_BACK = [k / 10 - (3 if k >= 15 else 0) for k in range(30)]
PLAYED_TWICE = [k % 30 / 10 for k in range(60)]
UNSET_AT_FIRST = [k / 10 - (1.6e9 if k < 2 else 0) for k in range(30)]
PAUSED = [k / 10 + (3600 if k >= 15 else 0) for k in range(30)]
ONE_EARLY = [k / 10 - (50 if k == 12 else 0) for k in range(30)]
ONE_AHEAD = [k / 10 + (500 if k == 12 else 0) for k in range(30)]
DISORDER = [k / 10 - (0.25 if k % 5 == 3 else 0) for k in range(30)]


@pytest.mark.parametrize(
    ("stamps_s", "past"),
    [
        (SET_BACK, range(15, 30)),
        (PLAYED_TWICE, range(30, 60)),
        (UNSET_AT_FIRST, range(2, 30)),
        (ONE_EARLY, [*range(12), *range(13, 30)]),
        (ONE_AHEAD, [*range(12), *range(13, 30)]),
    ],
    ids=["set_back", "played_twice", "unset_at_first", "one_early", "one_ahead"],
)
def test_clip_is_of_one_past(
    tmp_path: Path, stamps_s: list[float], past: Sequence[int], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_mcap(tmp_path / "a", logged(stamps_s))

    assert shown(path, 99) == list(past)
    assert f"{len(stamps_s) - len(past)} of {len(stamps_s)} frames lie beyond a jump" in caplog.text


def test_sound_stamps_are_of_one_past(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    disordered = write_mcap(tmp_path / "a", logged(DISORDER))
    paused = [replace(frame, logged_ns=frame.logged_ns + LAG_NS) for frame in logged(PAUSED)]
    for k, frame in enumerate(paused):  # the recorder was paused as well
        paused[k] = replace(frame, logged_ns=T0_NS + round(PAUSED[k] * 1e9))

    assert len(index_topic(disordered).stamps_ns) == 30
    assert len(index_topic(write_mcap(tmp_path / "b", paused)).stamps_ns) == 30
    assert "jump" not in caplog.text


def test_captures_before_a_jump_are_found(tmp_path: Path) -> None:
    path = write_mcap(tmp_path / "a", logged(SET_BACK))
    index = index_topic(path)
    before = [T0_NS + k * 10**8 for k in (0, 5, 14)]

    assert [value // 4 for value in brightness(path, "", index.at(before))] == [0, 5, 14]
    with pytest.raises(NoFramesError, match="no frame captured at"):
        index.at([before[0], int(index.stamps_ns[0])])  # of two pasts


def test_folder_without_metadata_is_read(tmp_path: Path) -> None:
    folder = write_bag(tmp_path / "a", film())
    (folder / "metadata.yaml").unlink()

    assert is_bag(folder)
    assert len(index_topic(folder, "/camera").stamps_ns) == 10


def test_metadata_without_storage_and_topics_is_no_matter(tmp_path: Path) -> None:
    folder = write_bag(tmp_path / "a", film())
    metadata = folder / "metadata.yaml"
    topics = re.compile(r"topics_with_message_count:.*?(?=\n  \w)", re.S)
    reindexed = topics.sub("topics_with_message_count: []", metadata.read_text())
    reindexed = reindexed.replace("storage_identifier: mcap", 'storage_identifier: ""')
    assert "/camera" not in reindexed
    metadata.write_text(reindexed)

    assert len(index_topic(folder, "/camera").stamps_ns) == 10


def test_metadata_that_names_a_missing_file_says_so(tmp_path: Path) -> None:
    folder = write_bag(tmp_path / "a", film())
    next(folder.glob("*.mcap")).rename(folder / "other.mcap")

    with pytest.raises(FrameError, match=r"names files that are missing: .*a\.mcap"):
        index_topic(folder)


@pytest.mark.parametrize("plugin", StoragePlugin)
def test_suffix_in_capitals_is_read(tmp_path: Path, plugin: StoragePlugin) -> None:
    whole = next(p for p in write_bag(tmp_path / "a", film(), plugin).iterdir() if p.suffix in BAG_SUFFIXES)
    capitals = tmp_path / whole.with_suffix(whole.suffix.upper()).name
    whole.rename(capitals)

    assert is_bag(capitals)
    assert len(index_topic(capitals).stamps_ns) == 10


def test_channels_of_other_kinds_lie_beside_the_camera(tmp_path: Path) -> None:
    path = tmp_path / "mixed.mcap"
    with path.open("wb") as file:
        writer = McapWriter(file)
        writer.start("ros2", "test")
        definition = TYPES.generate_msgdef("sensor_msgs/msg/Image", ros_version=2)[0].encode()
        schema = writer.register_schema("sensor_msgs/msg/Image", "ros2msg", definition)
        camera = writer.register_channel("/cam", "cdr", schema)
        events = writer.register_channel("/events", "json", writer.register_schema("Event", "jsonschema", b"{}"))
        for frame in film():
            data = bytes(TYPES.serialize_cdr(frame.message, "sensor_msgs/msg/Image"))
            writer.add_message(camera, frame.logged_ns, data, frame.logged_ns)
            writer.add_message(events, frame.logged_ns, b"{}", frame.logged_ns)
        writer.finish()

    assert camera_topics(path) == ["/cam"]
    assert brightness(path, "/cam", [0, 5, 9]) == [0, 50, 90]


@pytest.mark.parametrize(
    ("content", "advice"),
    [(b"", "is empty"), (b"no bag at all", "is no mcap file"), (b"\x89MCAP0\r\n" + bytes(99), "mcap recover")],
)
def test_mending_is_advised_only_where_it_helps(tmp_path: Path, content: bytes, advice: str) -> None:
    path = tmp_path / "a.mcap"
    path.write_bytes(content)

    with pytest.raises(FrameError) as error:
        index_topic(path)
    assert advice in str(error.value)
    assert ("mcap recover" in str(error.value)) == (advice == "mcap recover")
