"""A long recording, a window of frames at a time: a bag, a video file or a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from nvila_ros.types import NS_PER_S, Frame
from nvila_ros.video.bags import camera_topics, index_topic, open_bag, read_frames
from nvila_ros.video.media import FOLDER_FPS, open_media
from nvila_ros.video.windowing import OWN, Window

BAG_SUFFIXES = (".mcap", ".db3", ".bag")


class Recording(Protocol):
    """Frames by their captures.

    Attributes:
        name: of the source.
        stamps_ns: captures, (F,) int64, ascending.
    """

    name: str
    stamps_ns: np.ndarray

    def read(self, indices: Sequence[int]) -> list[Frame]:
        """Return some frames, decoded now."""
        ...

    def offset_s(self, stamp_ns: int) -> float | None:
        """Return what `ros2 bag play --start-offset` takes to begin at a capture; None where there is no bag."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


class BagRecording:
    """A camera of a bag; the default is its only one, or the first by name.

    Raises:
        FileNotFoundError: there is no bag.
        FrameError: it holds no camera, or cannot be read.
    """

    def __init__(self, path: Path, topic: str = "", window: Window = OWN) -> None:
        self.name, self._path, self._window = str(path), path, window
        self._topic = topic or next(iter(camera_topics(path)), "")
        self._index = index_topic(path, self._topic)
        self.stamps_ns = self._index.stamps_ns
        with open_bag(path) as bag:
            self._start_ns = int(bag.start_time)

    def read(self, indices: Sequence[int]) -> list[Frame]:
        """Return some frames, decoded now."""
        return read_frames(self._path, self._topic, indices, self._window)

    def offset_s(self, stamp_ns: int) -> float:
        """Return the seconds from the bag's first message to when the frame of a capture, or the last before, came."""
        place = int(np.searchsorted(self.stamps_ns, stamp_ns, side="right")) - 1
        return max(int(self._index.logged_ns[max(place, 0)]) - self._start_ns, 0) / NS_PER_S

    def close(self) -> None:
        """Nothing stays open."""


class MediaRecording:
    """A video file or a folder of images; stamps count from its first frame."""

    def __init__(self, path: Path, fps: float = FOLDER_FPS, window: Window = OWN) -> None:
        self._media = open_media(path, fps=fps, window=window)
        self.name, self.stamps_ns = str(path), self._media.stamps_ns

    def read(self, indices: Sequence[int]) -> list[Frame]:
        """Return some frames, decoded now."""
        return [Frame(image=self._media.read(i), stamp_ns=int(self.stamps_ns[i])) for i in indices]

    def offset_s(self, stamp_ns: int) -> None:
        """There is no bag."""

    def close(self) -> None:
        """Close the file."""
        self._media.close()


def open_recording(path: Path, topic: str = "", fps: float = FOLDER_FPS, window: Window = OWN) -> Recording:
    """Open a bag, known by its files, or anything else as media.

    Args:
        path: of either.
        topic: camera of a bag; empty is its only one, or the first by name.
        fps: of a folder's images.
        window: which values of more than eight bits are shown.

    Raises:
        FileNotFoundError: it is not there.
        FrameError: it cannot be read.
    """
    is_bag = path.suffix in BAG_SUFFIXES or (
        path.is_dir() and any(next(path.glob(f"*{suffix}"), None) for suffix in BAG_SUFFIXES)
    )
    return BagRecording(path, topic, window) if is_bag else MediaRecording(path, fps, window)
