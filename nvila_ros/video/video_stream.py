"""The video in a file as FFmpeg gives it: packets, times and whole frames, from a place on.

FFmpeg comes with PyAV. What is used of it is common to PyAV 8 to 18; the tests ran with 10.0, 12.3 and 18.1. Before
PyAV 12 a rotation is seen only where FFmpeg 4 gives it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np

from nvila_ros.errors import FrameError
from nvila_ros.video.picture_headers import MAX_PIXELS, check_pixels

DEFAULT_FPS = Fraction(25)
"""Frames a second of a stream that says nothing of time; FFmpeg takes the same."""
_STRICT = frozenset({"mjpeg"})
"""Codecs whose decoder conceals damage unless it is asked to fail. FFmpeg 5 aborts where others are asked to."""


@dataclass(frozen=True, slots=True)
class FrameTimes:
    """When each frame is shown, and where decoding may begin; in units of the stream's time base.

    Attributes:
        shown: (F,) int64, ascending and distinct.
        key_shown: (K,) int64, when each key frame is shown, ascending.
        key_decoded: (K,) int64, when it is decoded, by which containers seek.
    """

    shown: np.ndarray
    key_shown: np.ndarray
    key_decoded: np.ndarray

    def key_of(self, index: int) -> int:
        """Return the number of the key frame that a frame is decoded from; -1 where there is none."""
        return int(np.searchsorted(self.key_shown, self.shown[min(index, len(self.shown) - 1)], side="right")) - 1

    def index_of(self, shown: int | None) -> int | None:
        """Return the number of the frame that is shown at a time, None where no frame is."""
        if shown is None:
            return None
        index = int(np.searchsorted(self.shown, shown))
        return index if index < len(self.shown) and self.shown[index] == shown else None


class VideoStream:
    """The first video stream of a file.

    Args:
        name: path of the file.

    Raises:
        FrameError: the file has no video, or one of too many pixels.
        av.error.FFmpegError: FFmpeg cannot read it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._container: Any = None
        self._packets: Iterator[Any] = iter(())
        self.restart()

    def restart(self) -> None:
        """Go to the beginning, by opening the file anew: not every container can seek there."""
        self.close()
        # A bare name may hold a colon, which stands behind a protocol; and a playlist must reach nothing else.
        self._container = av.open(f"file:{self._name}", options={"protocol_whitelist": "file"})
        if not self._container.streams.video:
            raise FrameError(f"{self._name} holds no video; it has sound or data only")
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        if context is None:
            raise FrameError(f"{self._name} holds a video of a codec that FFmpeg does not know")
        if context.width or context.height:  # else the first frame shows them
            check_pixels(context.width, context.height, self._name)
        context.thread_type = "AUTO" if _is_silent() else "SLICE"
        strict = {"err_detect": "explode"} if context.name in _STRICT else {}
        context.options = {"max_pixels": str(MAX_PIXELS), **strict}
        self._packets, self._is_at_key = self._demux(), True

    def close(self) -> None:
        """Close the file."""
        self._packets = iter(())
        if self._container is not None:
            self._container.close()
            self._container = None

    @property
    def codec(self) -> str:
        """FFmpeg's name of the codec."""
        return str(self._stream.codec_context.name)

    @property
    def time_base(self) -> Fraction:
        """Seconds of one unit of time."""
        return Fraction(self._stream.time_base)

    @property
    def stated_fps(self) -> Fraction:
        """Frames a second as the container says, which is often a guess."""
        stated = self._stream.average_rate
        return Fraction(stated) if stated and stated > 0 else DEFAULT_FPS

    def read_times(self) -> FrameTimes | None:
        """Read all packets from here on, and return what they say of times; None where they do not say all."""
        shown, keys, last = [], [], None
        for packet in self._packets:
            if packet.size == 0:
                continue
            if packet.pts is None or (last is not None and packet.dts is not None and packet.dts < last):
                return None
            last = packet.dts if packet.dts is not None else last
            if packet.is_keyframe:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            if not packet.is_corrupt and not getattr(packet, "is_discard", False) and self._is_shown(packet):
                shown.append(packet.pts)
        if not keys:
            return None
        # What lies before the first key frame cannot be decoded.
        ordered = np.array(sorted(each for each in shown if each >= keys[0][0]), np.int64)
        by_time = np.array(sorted(keys), np.int64)
        is_distinct = len(ordered) > 0 and bool((np.diff(ordered) > 0).all())
        return FrameTimes(ordered, by_time[:, 0], by_time[:, 1]) if is_distinct else None

    def seek(self, shown: int, decoded: int) -> bool:
        """Go to the key frame of these times; False where the container came out behind it, or cannot seek."""
        # Most containers seek by the time that a frame is shown, others by that at which it is decoded.
        return self._seek(shown, shown, decoded) or (decoded < shown and self._seek(decoded, shown, decoded))

    def _seek(self, time: int, shown: int, decoded: int) -> bool:
        try:
            self._container.seek(time, stream=self._stream)
        except av.error.FFmpegError:
            return False
        packets = self._demux()
        first = next(packets, None)
        if first is None or first.pts is None:
            return False
        self._packets, self._is_at_key = itertools.chain([first], packets), bool(first.is_keyframe)
        # After a seek Matroska knows no decoding times.
        return bool(first.pts <= shown if first.dts is None else first.dts <= decoded)

    def frames(self) -> Iterator[tuple[int | None, Any]]:
        """Yield when each frame is shown, and the frame, from here on.

        Frames that are damaged are left out, and so are those that follow them up to the next key frame, since they
        are built on them.
        """
        is_whole, damaged = self._is_at_key, set()
        for packet in self._packets:
            if packet.is_corrupt:  # such as the last one of a file that is cut off
                damaged.add(packet.pts)
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                decoded, is_whole = [], False
            for frame in decoded:
                is_damaged = frame.is_corrupt or frame.pts in damaged
                damaged.discard(frame.pts)  # times may come again
                is_whole = (is_whole or bool(frame.key_frame)) and not is_damaged
                if is_whole:
                    yield frame.pts, frame

    def to_rgb(self, frame: Any) -> np.ndarray:
        """Return the pixels of a frame as they are to be shown, (H, W, 3) uint8 RGB.

        Raises:
            FrameError: it has too many.
        """
        check_pixels(frame.width, frame.height, self._name)
        pixels = frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(pixels, round(self._rotation(frame) / 90) % 4))

    def _rotation(self, frame: Any) -> float:
        """Return by how many degrees a frame is turned to the left when it is shown."""
        if hasattr(frame, "rotation"):
            return float(frame.rotation)
        if "rotate" in self._stream.metadata:  # FFmpeg 4, to the right
            return -float(self._stream.metadata["rotate"])
        return float((getattr(self._stream, "side_data", None) or {}).get("DISPLAYMATRIX", 0.0))

    def _demux(self) -> Iterator[Any]:
        """Yield the packets of the stream, and last an empty one; a file that is cut off just ends."""
        try:
            yield from self._container.demux(self._stream)
        except av.error.FFmpegError:
            return

    def _is_shown(self, packet: Any) -> bool:
        """Whether a packet is a frame to see: those of VP8 may only be built on (RFC 6386, 9.1)."""
        return self.codec != "vp8" or bool(memoryview(packet)[0] & 0x10)


def _is_silent() -> bool:
    """Whether FFmpeg's log goes nowhere. Where Python takes it, freeing a decoder that threads by frames deadlocks.

    Its threads wait for the interpreter's lock in order to log, and the lock's holder waits for the threads.
    """
    return getattr(av.logging, "get_level", lambda: 0)() is None


if not _is_silent():  # as PyAV 12 and older begin
    av.logging.set_level(av.logging.PANIC)  # what is wrong with a file is said by our errors alone
