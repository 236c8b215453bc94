"""Frames of a video file by their number, with the presentation times of the file itself.

In: a file of any container and codec that FFmpeg reads. Out: frames ``(H, W, 3)`` uint8 RGB and when each is shown.

On opening all packets are read once and none is decoded: that gives the time of each frame and the key frames, from
which decoding can begin. The first frames and the last one are decoded to see whether the packets say what the decoder
gives. Where they do not (a file that is cut off, fields in packets of their own, a stream without times), the file is
decoded once, and what came out is what there is. Memory is 8 bytes a frame, and the frame that was read last.

A frame is read by decoding from the key frame before it, or, where the container cannot seek there, from the start. A
frame that the decoder calls damaged is refused, and so are those that follow up to the next key frame. The decoders of
VP8, VP9 and HEVC report no damage inside a frame.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np

from nvila_ros.errors import FrameError
from nvila_ros.types import NS_PER_S
from nvila_ros.video.picture_headers import check_heic, sniff_file
from nvila_ros.video.pictures import read_file, read_picture_header
from nvila_ros.video.video_stream import FrameTimes, VideoStream

_NUM_CHECKED = 3  # frames at the beginning that are compared with what the packets say
_MAX_FORWARD = 16  # frames: decoding so many costs no more than a seek


class VideoFile:
    """A video file; reading forward is cheap, going back costs a seek.

    Attributes:
        name: its path.
        num_frames: those that are shown.
        stamps_ns: (F,) int64, when each frame is shown, from the first; ascending.
        is_clip: False of a picture in a container for videos: a GIF that does not move.

    Raises:
        FrameError: there is no such file, or FFmpeg cannot decode it as a video.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._frames: Iterator[tuple[int | None, Any]] = iter(())
        _check_file(path)
        try:
            self._stream = VideoStream(self.name)
            self._times, self._is_timed = self._read_times()
        except (av.error.FFmpegError, OSError, UnicodeError) as error:
            detail = " ".join(str(getattr(error, "strerror", "") or error).split())
            raise FrameError(
                f"{self.name} cannot be decoded as a video ({detail}); convert it to H.264 in an mp4 file"
            ) from error
        self.num_frames = len(self._times.shown)
        self.stamps_ns = _to_ns(self._times.shown, self._unit)
        self.is_clip = self.num_frames > 1 or self._stream.codec != "gif"

    @property
    def fps(self) -> float:
        """Mean frames a second; of a single frame what its container says."""
        span = Fraction(int(self._times.shown[-1] - self._times.shown[0])) * self._unit
        return float((self.num_frames - 1) / span if span else self._stream.stated_fps)

    def read(self, index: int) -> np.ndarray:
        """Return frame `index`, (H, W, 3) uint8 RGB, not to be written to.

        Raises:
            FrameError: there is no such frame, or the file is damaged there.
        """
        if not 0 <= index < self.num_frames:
            raise FrameError(f"frame index must lie in [0, {self.num_frames - 1}] of {self.name}, got {index}")
        image = self._read(index)
        if image is None:
            raise FrameError(
                f"frame {index} of {self.num_frames} of {self.name} cannot be decoded; the file is damaged"
            )
        return image

    def close(self) -> None:
        """Close the file."""
        self._frames = iter(())
        self._stream.close()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _unit(self) -> Fraction:
        """Seconds of one step of the times."""
        return self._stream.time_base if self._is_timed else 1 / self._stream.stated_fps

    def _read_times(self) -> tuple[FrameTimes, bool]:
        """Return when frames are shown, and whether that is the file's word or a count."""
        self._kept: tuple[int, np.ndarray] | None = None
        self._can_seek = self._is_timed = True
        times = self._stream.read_times()
        self._restart()
        if times is not None and self._is_true(times):
            return times, True
        self._restart()
        shown = [shown for shown, _ in self._frames]
        self._kept = None
        self._restart()
        if not shown:
            raise FrameError(f"{self.name} holds no frame that can be decoded; convert it to H.264 in an mp4 file")
        none = np.empty(0, np.int64)
        known = [each for each in shown if each is not None]
        if len(known) < len(shown) or any(later <= earlier for earlier, later in pairwise(known)):
            return FrameTimes(np.arange(len(shown)), none, none), False
        keys = (none, none) if times is None else (times.key_shown, times.key_decoded)
        return FrameTimes(np.array(known, np.int64), *keys), True

    def _is_true(self, times: FrameTimes) -> bool:
        """Whether the first frames and the last one are decoded at the times that the packets say."""
        self._times, count = times, len(times.shown)
        checked = min(_NUM_CHECKED, count)
        found = [shown for shown, _ in islice(self._frames, checked)]
        self._next = checked
        return found == times.shown[:checked].tolist() and self._read(count - 1) is not None

    def _restart(self) -> None:
        self._stream.restart()
        self._frames = self._stream.frames()
        self._next = 0

    def _read(self, index: int) -> np.ndarray | None:
        """Return a frame, None where it is not among those that are whole."""
        if self._kept is None or self._kept[0] != index:
            self._go_near(index)
            image = self._find(index)
            if image is None:
                return None
            self._kept = index, image
        return self._kept[1]

    def _go_near(self, index: int) -> None:
        """Go to where decoding up to a frame costs least."""
        key = self._times.key_of(index)
        ahead = index - self._next
        if ahead >= 0 and (ahead <= _MAX_FORWARD or not self._can_seek or key <= self._times.key_of(self._next)):
            return
        if self._can_seek and key >= 0:
            self._can_seek = self._stream.seek(int(self._times.key_shown[key]), int(self._times.key_decoded[key]))
            self._frames = self._stream.frames()
        if not self._can_seek or key < 0:
            self._restart()

    def _find(self, index: int) -> np.ndarray | None:
        """Decode up to a frame."""
        for shown, frame in self._frames:
            at = self._times.index_of(shown) if self._is_timed else self._next
            if at is None:
                continue
            self._next = at + 1
            if at >= index:
                return self._stream.to_rgb(frame) if at == index else None
        self._next = len(self._times.shown)
        return None


def _check_file(path: Path) -> None:
    """Refuse what is no file, and pictures that FFmpeg would read in part or without a bound.

    Raises:
        FrameError: it is.
    """
    if not path.is_file():
        raise FrameError(f"no video file at {str(path)!r}; check the path")
    kind = sniff_file(path)
    check_heic(kind)
    if kind == "gif":
        read_picture_header(read_file(path))


def _to_ns(shown: np.ndarray, unit: Fraction) -> np.ndarray:
    """Return times from the first, (F,) int64 ns."""
    numerator, denominator = (unit * NS_PER_S).as_integer_ratio()
    since = (shown - shown[0]).astype(object)
    return np.array([(2 * int(each) * numerator + denominator) // (2 * denominator) for each in since], np.int64)
