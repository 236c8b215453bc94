"""Frames out of ROS 2 bags, without ROS: which there are, and those that are asked for.

In: a bag, which is an mcap or db3 file or the folder that `ros2 bag record` writes, and a topic of sensor_msgs/Image or
CompressedImage. Out: frames ``(H, W, 3)`` uint8 RGB, decoded by the tables that the node uses. A frame's time is its
capture, `header.stamp`; where a camera left that at zero it is when the bag received it, as in the node. Where stamps
jump, by a clock that was set or a bag that was played twice, clips show the longest past.

A topic is gone through once and only its times are kept, 16 bytes a message; then a frame is read from where it lies.
So memory is bounded by the frames asked for, and a thousand questions about one bag cost one pass over it.

Source: rosbag2's storage formats as the package rosbags reads them; the encapsulation of OMG DDSI-RTPS 2.3, section 10.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from nvila_ros.errors import FrameError, NoFramesError
from nvila_ros.types import NS_PER_S, EncodedImage, Frame, RawImage
from nvila_ros.video.buffer import MAX_DISORDER_NS
from nvila_ros.video.compressed import decode_compressed, read_header
from nvila_ros.video.image_decoding import decode
from nvila_ros.video.sampling import sample_indices
from nvila_ros.video.windowing import OWN, Window

if TYPE_CHECKING:
    from rosbags.interfaces import Connection, ConnectionExtRosbag2
    from rosbags.rosbag2 import Reader
    from rosbags.typesys.store import Typestore

    from nvila_ros.video.bag_storage import BagFiles

IMAGE_TYPE, COMPRESSED_TYPE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
_NUM_INDEXES = 64  # of topics, kept in memory: 16 bytes a message
FAR_AHEAD_NS = 60 * NS_PER_S
"""How much more than the bag's own clock a camera's may advance from one frame to the next, unless it was set."""

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Index:
    """The messages of a topic in order of capture, of one past: a clip never shows frames from both sides of a jump.

    Attributes:
        stamps_ns: captures, (F,) int64, ascending.
        logged_ns: when the bag received each, (F,) int64, by which it is found again.
        others: the other pasts, where stamps jumped; their messages are numbered after these.
    """

    stamps_ns: np.ndarray
    logged_ns: np.ndarray
    others: tuple[Index, ...] = ()

    def between(self, start_s: float, end_s: float | None, num_frames: int) -> list[int]:
        """Return which messages show a window, as the node samples one: evenly in time, the newest always.

        Args:
            start_s: of the window, from the first capture.
            end_s: likewise; None is the last capture.
            num_frames: at least 1; where the window holds fewer, all of them.

        Raises:
            NoFramesError: the window is empty.
        """
        ages_ns = self.stamps_ns - self.stamps_ns[0]
        past_ns = int(ages_ns[-1]) + 1  # stands for any later time, which may exceed 64 bits
        low = int(np.searchsorted(ages_ns, round(min(start_s * NS_PER_S, past_ns))))
        high_ns = past_ns if end_s is None else round(min(end_s * NS_PER_S, past_ns))
        high = int(np.searchsorted(ages_ns, high_ns, side="right"))
        if low >= high:
            until = "the end" if end_s is None else f"{end_s:g} s"
            raise NoFramesError(f"no frame from {start_s:g} s to {until}; the topic ends at {self.last_s:.3f} s")
        return [low + index for index in sample_indices(self.stamps_ns[low:high].tolist(), num_frames)]

    def nearest(self, time_s: float) -> int:
        """Return the message nearest to a time from the first capture; of two that are equally near the older.

        Raises:
            NoFramesError: the time lies behind the last capture.
        """
        if not 0 <= time_s <= self.last_s:
            raise NoFramesError(f"no frame at {time_s:g} s; the topic ends at {self.last_s:.3f} s")
        return int(np.abs(self.stamps_ns - self.stamps_ns[0] - round(time_s * NS_PER_S)).argmin())

    def at(self, stamps_ns: Sequence[int]) -> list[int]:
        """Return the messages of these captures, exactly; all of one past.

        Raises:
            NoFramesError: one of them is not there.
        """
        first = 0
        for past in (self, *self.others):
            found = np.searchsorted(past.stamps_ns, stamps_ns)
            if (past.stamps_ns[np.minimum(found, len(past.stamps_ns) - 1)] == stamps_ns).all():
                return [first + int(each) for each in found]
            first += len(past.stamps_ns)
        missing = next(stamp for stamp in stamps_ns if stamp not in self.stamps_ns)  # of two pasts, one of the other
        begin, end = int(self.stamps_ns[0]), int(self.stamps_ns[-1])
        raise NoFramesError(f"no frame captured at {missing} ns; the topic has some from {begin} to {end}")

    def message(self, index: int) -> tuple[int, int]:
        """Return when a message was captured, and when the bag received it."""
        for past in (self, *self.others):
            if index < len(past.stamps_ns):
                return int(past.stamps_ns[index]), int(past.logged_ns[index])
            index -= len(past.stamps_ns)
        raise IndexError("there is no such message")

    @property
    def last_s(self) -> float:
        """The last capture, from the first."""
        return math.ceil(int(self.stamps_ns[-1] - self.stamps_ns[0]) / 1e6) / 1e3


@contextlib.contextmanager
def open_bag(path: Path) -> Iterator[BagFiles | Reader]:
    """Open a bag; what its reader cannot read while it is open is raised as one kind of error.

    Raises:
        FileNotFoundError: it is not there.
        FrameError: it is no bag, is cut off or damaged, or of a format that is not read here.
    """
    from nvila_ros.video.bag_storage import open_files

    with open_files(path) as bag:
        yield bag


@functools.cache
def typestore() -> Typestore:
    """Return the standard messages, whatever a bag says of its own."""
    from rosbags.typesys import Stores, get_typestore

    return get_typestore(Stores.LATEST)


def camera_topics(path: Path) -> list[str]:
    """Return the topics of a bag that carry images, in order of their names.

    Raises:
        FileNotFoundError: there is no bag.
        FrameError: it cannot be read.
    """
    with open_bag(path) as bag:
        return _cameras(bag)


def _cameras(bag: BagFiles | Reader) -> list[str]:
    return sorted({each.topic for each in bag.connections if each.msgtype in (IMAGE_TYPE, COMPRESSED_TYPE)})


def index_topic(path: Path, topic: str = "") -> Index:
    """Return when the frames of a camera were captured; asked again about the same files it is remembered.

    Args:
        path: of the bag.
        topic: may be left out where there is but one that carries images.

    Raises:
        FileNotFoundError: there is no bag.
        FrameError: it cannot be read, has no such topic, or the topic carries no images.
        NoFramesError: no message is there.
    """
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return _index(path, topic, stats)


@functools.lru_cache(_NUM_INDEXES)
def _index(path: Path, topic: str, stats: tuple[object, ...]) -> Index:
    with open_bag(path) as bag:
        times = [
            (_stamp_ns(data, path) or logged_ns, logged_ns)
            for _, logged_ns, data in bag.messages(_connections(bag, topic))
        ]
        times.sort(key=lambda time: time[1])  # files of one bag may overlap
    if not times:
        raise NoFramesError(f"bag {path} holds no message on {topic or 'its camera topic'}")
    pasts = sorted(split_pasts(times), key=len, reverse=True)
    if len(pasts) > 1:
        num_void = len(times) - len(pasts[0])
        LOG.warning(
            "bag %s %s: stamps jump, and %d of %d frames lie beyond a jump; clips show the longest past",
            path, topic, num_void, len(times),
        )  # fmt: skip
    shown, *others = (np.array(sorted(past), np.int64) for past in pasts)
    return Index(shown[:, 0], shown[:, 1], tuple(Index(other[:, 0], other[:, 1]) for other in others))


def split_pasts(times: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Part messages where their stamps jump, as the node does: the latest past first.

    Stamps jump back by more than a second (a clock that was set, a bag that was played again), or ahead of the bag's
    own clock (a clock that was not set at first). One message alone is no jump but an error, and is parted by itself.

    Args:
        times: capture and receipt of each message, in order of receipt.
    """
    pasts: list[list[tuple[int, int]]] = [[times[0]]]
    alone: list[list[tuple[int, int]]] = []
    newest, held = times[0], None
    for time in times[1:]:
        if not _jumps(newest, time):
            pasts[-1].append(time)
            newest = max(newest, time)
        elif held is None or _jumps(held, time):
            alone += [[held]] if held else []
            held = time
            continue
        else:
            pasts.append([held, time])
            newest, held = max(held, time), None
        alone += [[held]] if held else []
        held = None
    return [*reversed(pasts), *alone, *([[held]] if held else [])]


def _jumps(last: tuple[int, int], time: tuple[int, int]) -> bool:
    """Whether a stamp cannot follow another."""
    gap_ns, logged_gap_ns = time[0] - last[0], time[1] - last[1]
    return gap_ns < -MAX_DISORDER_NS or gap_ns - max(logged_gap_ns, 0) > FAR_AHEAD_NS


def _connections(bag: BagFiles | Reader, topic: str) -> list[Connection]:
    cameras = _cameras(bag)
    listed = ", ".join(cameras) or "none"
    if not topic and len(cameras) != 1:
        raise FrameError(f"bag {bag.path} needs a topic to be named; those that carry images are {listed}")
    chosen = [each for each in bag.connections if each.topic == (topic or cameras[0])]
    if not chosen:
        raise FrameError(f"bag {bag.path} has no topic {topic!r}; those that carry images are {listed}")
    for each in chosen:
        if each.topic not in cameras:
            raise FrameError(f"topic {topic!r} of bag {bag.path} must carry images, got {each.msgtype}; use {listed}")
        encoding = cast("ConnectionExtRosbag2", each.ext).serialization_format
        if encoding != "cdr":
            found = f"got {encoding!r}; record it with ROS 2's own middleware"
            raise FrameError(f"messages on {each.topic} of bag {bag.path} must be encoded as cdr, {found}")
    return chosen


def _stamp_ns(data: bytes, path: object) -> int:
    """Read `header.stamp`, with which both kinds of image begin, without touching the pixels."""
    if len(data) < 12:  # bytes: the encapsulation, then seconds and nanoseconds
        raise FrameError(f"bag {path} holds an image message of {len(data)} bytes, too short for its header")
    order = "<" if data[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(f"{order}iI", data, 4)
    return int(seconds * NS_PER_S + nanoseconds)


def read_frames(path: Path, topic: str, indices: Sequence[int], window: Window = OWN) -> list[Frame]:
    """Read and decode some frames of a topic.

    Args:
        path: of the bag.
        topic: as `index_topic` takes it.
        indices: into the index of the topic.
        window: which values of more than eight bits are shown.

    Raises:
        FileNotFoundError: there is no bag.
        FrameError: as `index_topic`, or an image cannot be decoded.
        NoFramesError: no message is there.
    """
    index = index_topic(path, topic)
    with open_bag(path) as bag:
        connections = _connections(bag, topic)
        return [_read_frame(bag, connections, *index.message(each), str(window)) for each in indices]


def _read_frame(
    bag: BagFiles | Reader, connections: list[Connection], stamp_ns: int, logged_ns: int, window: str
) -> Frame:
    for connection, _, data in bag.messages(connections, start=logged_ns, stop=logged_ns + 1):  # few, mostly one
        if (_stamp_ns(data, bag.path) or logged_ns) == stamp_ns:
            try:
                return _decode(data, connection, stamp_ns, window)
            except FrameError as error:
                where = f"frame captured at {stamp_ns} ns on {connection.topic} of bag {bag.path}"
                raise FrameError(f"{where}: {error}") from error
    raise FrameError(f"bag {bag.path} no longer holds the frame captured at {stamp_ns} ns; was it rewritten meanwhile?")


def _decode(data: bytes, connection: Connection, stamp_ns: int, window: str) -> Frame:
    message: Any = typestore().deserialize_cdr(data, connection.msgtype)
    if connection.msgtype == COMPRESSED_TYPE:
        header = read_header(message.data, message.format)
        encoded = EncodedImage(
            data=message.data, format=message.format, width=header.width, height=header.height, window=window
        )
        image = decode_compressed(encoded)
    else:
        raw = RawImage(
            data=message.data,
            encoding=message.encoding,
            width=message.width,
            height=message.height,
            step=message.step,
            is_bigendian=bool(message.is_bigendian),
            window=window,
        )
        image = decode(raw)
    return Frame(image=image, stamp_ns=stamp_ns, camera=connection.topic, frame_id=message.header.frame_id)
