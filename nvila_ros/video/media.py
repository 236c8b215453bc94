"""Frames from files and cameras, decoded one by one when they are asked for.

In: a video file, a folder of images, one image, or a camera of this machine. Out: frames ``(H, W, 3)`` uint8 RGB and
clips of them. Memory is bounded by the clip asked for, whatever the length of the video: nothing is decoded ahead and
nothing is kept. Clips are chosen as NVILA was trained on them, ``round(linspace(first, last, num_frames))``.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import cv2
import numpy as np

from nvila_ros.errors import FrameError, NoFramesError, QueryError
from nvila_ros.types import Frame

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
"""What is read as an image, and looked for in a folder; all other files are opened as video."""
FOLDER_FPS = 30.0
"""Frames a second that a folder of images stands for when nobody says."""
# FFmpeg reads this once, when it first opens a file: what is wrong with one is told by our errors alone.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
_MAX_GRAB = 32  # frames: further than this forward, a seek is cheaper than decoding all that lies between


class Media(Protocol):
    """A known number of frames, each of which can be read at any time."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def num_frames(self) -> int: ...  # noqa: D102

    @property
    def fps(self) -> float: ...  # noqa: D102

    def read(self, index: int) -> np.ndarray:
        """Return frame `index`, (H, W, 3) uint8 RGB."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class VideoFile:
    """A video file; reading forward is cheap, going back costs a seek.

    Raises:
        FrameError: there is no such file, or it is not a video that OpenCV can decode.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise FrameError(f"no video file at {str(path)!r}; check the path")
        self.name = str(path)
        self._capture = cv2.VideoCapture(self.name)
        if not self._capture.isOpened():
            raise FrameError(f"{self.name} cannot be decoded as a video; convert it to H.264 in an mp4 file")
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS))
        if not (math.isfinite(self.fps) and 0 < self.fps <= 1000):
            raise FrameError(f"{self.name} states {self.fps:g} frames a second, not a rate in (0, 1000]; remux it")
        self._next = 0
        self.num_frames = self._count()

    def read(self, index: int) -> np.ndarray:
        """Return frame `index`, (H, W, 3) uint8 RGB.

        Raises:
            FrameError: there is no such frame, or the file is damaged there.
        """
        _check_index(self.name, index, self.num_frames)
        image = self._decode(index)
        if image is None:
            raise FrameError(
                f"frame {index} of {self.num_frames} of {self.name} cannot be decoded; the file is damaged"
            )
        return image

    def close(self) -> None:
        """Close the file."""
        self._capture.release()

    def __enter__(self) -> VideoFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count(self) -> int:
        """Trust the container's count if its last frame is there, else go through the file once."""
        stated = round(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        if stated > 0 and self._decode(stated - 1) is not None:
            return stated
        self._seek(0)
        while self._capture.grab():
            self._next += 1
        if not self._next:
            raise FrameError(f"{self.name} holds no frame that can be decoded; convert it to H.264 in an mp4 file")
        return self._next

    def _decode(self, index: int) -> np.ndarray | None:
        if not self._next <= index <= self._next + _MAX_GRAB:
            self._seek(index)
        while self._next < index and self._capture.grab():
            self._next += 1
        is_read, bgr = self._capture.read()
        self._next += 1
        return _rgb(bgr) if is_read else None

    def _seek(self, index: int) -> None:
        self._capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        self._next = round(self._capture.get(cv2.CAP_PROP_POS_FRAMES))
        if self._next > index or self._next < 0:  # such containers know no way back: begin again
            self._capture.open(self.name)
            self._next = 0


class ImageFiles:
    """Image files in order, as the frames of a video."""

    def __init__(self, name: str, paths: Sequence[Path], fps: float) -> None:
        self.name, self.fps, self.num_frames = name, fps, len(paths)
        self._paths = tuple(paths)

    def read(self, index: int) -> np.ndarray:
        """Return image `index`, (H, W, 3) uint8 RGB.

        Raises:
            FrameError: there is no such image, or it cannot be decoded.
        """
        _check_index(self.name, index, self.num_frames)
        bgr = cv2.imread(str(self._paths[index]), cv2.IMREAD_COLOR)
        if bgr is None:
            raise FrameError(f"{self._paths[index]} cannot be decoded as an image; save it again as PNG or JPEG")
        return _rgb(bgr)

    def close(self) -> None:
        """Do nothing: each file is open for one read only."""


def open_media(source: str | Path, *, fps: float = FOLDER_FPS) -> VideoFile | ImageFiles:
    """Open a video file, a folder of images in natural order (`2.png` before `10.png`), or one image.

    Args:
        source: its path.
        fps: what a folder's images stand for, frames a second; a video file knows its own.

    Raises:
        FrameError: there is nothing there that can be read as frames.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        images = [entry for entry in path.iterdir() if _is_image(entry)]
        if not images:
            raise FrameError(f"folder {str(path)!r} holds no image; looked for {sorted(IMAGE_SUFFIXES)}")
        return ImageFiles(str(path), sorted(images, key=_natural), fps)
    if not path.exists():
        raise FrameError(f"no file or folder at {str(path)!r}; check the path")
    return ImageFiles(str(path), [path], fps) if _is_image(path) else VideoFile(path)


def read_clip(media: Media, num_frames: int, start_s: float = 0.0, end_s: float | None = None) -> list[Frame]:
    """Read frames spread evenly over an interval of the media, in order; stamps count from its first frame.

    Args:
        media: where to read.
        num_frames: at least 1; where the interval holds fewer, all of them.
        start_s: the earliest time.
        end_s: the latest time; None is the end.

    Raises:
        QueryError: num_frames or an end of the interval is out of its range.
        NoFramesError: the interval holds no frame.
    """
    if num_frames < 1:
        raise QueryError(f"a clip needs at least 1 frame, got {num_frames}")
    last_s = (media.num_frames - 1) / media.fps
    end_s = last_s if end_s is None else end_s
    if not 0 <= start_s <= end_s:
        raise QueryError(f"an interval needs 0 <= start <= end, got {start_s:g} s to {end_s:g} s")
    nudge = 1e-6  # frames: an interval that ends at a frame's own time includes it
    first = math.ceil(start_s * media.fps - nudge)
    last = min(math.floor(end_s * media.fps + nudge), media.num_frames - 1)
    if first > last:
        raise NoFramesError(f"{media.name} has no frame from {start_s:g} s to {end_s:g} s; it ends at {last_s:.3f} s")
    indices = np.round(np.linspace(first, last, min(num_frames, last - first + 1))).astype(int).tolist()
    return [Frame(image=media.read(i), stamp_ns=round(i * 1e9 / media.fps), camera=media.name) for i in indices]


class LiveCamera:
    """A camera of this machine, by its index.

    Raises:
        FrameError: there is no such camera, or another program holds it.
    """

    def __init__(self, index: int, capture: cv2.VideoCapture | None = None) -> None:
        self.name = f"camera:{index}"
        self._capture = cv2.VideoCapture(index) if capture is None else capture
        if not self._capture.isOpened():
            raise FrameError(f"camera {index} cannot be opened; look for it with: ls /dev/video*")

    def record_clip(self, num_frames: int, window_s: float, now_ns: Callable[[], int] = time.time_ns) -> list[Frame]:
        """Film for window_s and keep num_frames spread evenly over it; only these are ever decoded.

        Raises:
            QueryError: num_frames or window_s is out of its range.
            FrameError: the camera stopped giving frames.
        """
        if num_frames < 1 or not 0 <= window_s < math.inf:
            raise QueryError(f"a clip needs at least 1 frame over at least 0 s, got {num_frames} over {window_s:g} s")
        wanted_s = np.linspace(0.0, window_s, num_frames).tolist()
        frames: list[Frame] = []
        start_ns = None
        while len(frames) < num_frames:
            is_grabbed = self._capture.grab()
            stamp_ns = now_ns()
            start_ns = stamp_ns if start_ns is None else start_ns
            if is_grabbed and (stamp_ns - start_ns) / 1e9 < wanted_s[len(frames)]:
                continue
            is_read, bgr = self._capture.retrieve() if is_grabbed else (False, None)
            if not is_read or bgr is None:
                raise FrameError(f"{self.name} gave no frame after {len(frames)} of {num_frames}; is it unplugged?")
            frames.append(Frame(image=_rgb(bgr), stamp_ns=stamp_ns, camera=self.name))
        return frames

    def close(self) -> None:
        """Give the camera back."""
        self._capture.release()


def _rgb(bgr: np.ndarray) -> np.ndarray:
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


def _check_index(name: str, index: int, num_frames: int) -> None:
    if not 0 <= index < num_frames:
        raise FrameError(f"frame index must lie in [0, {num_frames - 1}] of {name}, got {index}")


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key under which runs of digits count as numbers."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(part), "") if part.isdigit() and part.isascii() else (-1, part) for part in parts]
