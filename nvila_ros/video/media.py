"""Frames from files, decoded one by one when they are asked for.

In: a video file, a folder of images, or one image, which may be animated. Out: frames ``(H, W, 3)`` uint8 RGB and clips
of them. Memory is bounded by the clip asked for, whatever the length of the video: nothing is decoded ahead. Clips are
chosen as NVILA was trained on them: frames ``round(linspace(first, last, num_frames))``, so that a clip of fewer frames
than asked for shows some twice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from nvila_ros.errors import FrameError, NoFramesError, QueryError
from nvila_ros.types import NS_PER_S, Frame
from nvila_ros.video.animation import AnimatedPicture, is_animated
from nvila_ros.video.dicom import DicomFile
from nvila_ros.video.dicom_series import DicomSeries, find_slices
from nvila_ros.video.picture_headers import sniff_file
from nvila_ros.video.pictures import decode_picture, read_file
from nvila_ros.video.video_file import VideoFile
from nvila_ros.video.windowing import OWN, Window

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".dcm", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""What is looked for in a folder of images; of a single file, the bytes say what it is."""
JPEG_STREAM_SUFFIXES = frozenset({".mjpeg", ".mjpg"})
"""Of files that begin as a JPEG does and go on with others."""
FOLDER_FPS = 30.0
"""Frames a second that a folder of images stands for when nobody says."""
_NUDGE_NS = 1000  # an interval that ends at a frame's own time includes it, though its end was rounded


class Media(Protocol):
    """A known number of frames, each of which can be read at any time."""

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def stamps_ns(self) -> np.ndarray:
        """When each frame is shown, from the first: (F,) int64, ascending."""
        ...

    @property
    def is_clip(self) -> bool:
        """Whether it is shown as a clip, even where it has but one frame."""
        ...

    def read(self, index: int) -> np.ndarray:
        """Return frame `index`, (H, W, 3) uint8 RGB."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class ImageFiles:
    """Image files in order, as the frames of a video.

    Args:
        name: for errors and frames.
        paths: of the images.
        fps: frames a second.
        is_clip: False for a single image that stands for itself.
        window: which values of more than eight bits are shown.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], fps: float, *, is_clip: bool = True, window: Window = OWN
    ) -> None:
        self.name, self.fps, self.num_frames, self.is_clip = name, fps, len(paths), is_clip
        self.stamps_ns = np.round(np.arange(len(paths)) * (NS_PER_S / fps)).astype(np.int64)
        self._paths, self._window = tuple(paths), window

    def read(self, index: int) -> np.ndarray:
        """Return image `index`, (H, W, 3) uint8 RGB.

        Raises:
            FrameError: there is no such image, or it is damaged, too large or of an unknown kind.
        """
        if not 0 <= index < self.num_frames:
            raise FrameError(f"frame index must lie in [0, {self.num_frames - 1}] of {self.name}, got {index}")
        path = self._paths[index]
        try:
            return decode_picture(read_file(path), window=self._window)
        except FrameError as error:
            raise FrameError(f"{path} cannot be decoded as an image: {error}") from error

    def close(self) -> None:
        """Do nothing: each file is open for one read only."""


OpenedMedia = VideoFile | ImageFiles | AnimatedPicture | DicomFile | DicomSeries


def open_media(source: str | Path, *, fps: float = FOLDER_FPS, window: Window = OWN) -> OpenedMedia:
    """Open a video file, a folder of images in natural order (`2.png` before `10.png`), one image, or DICOM.

    Args:
        source: its path.
        fps: what a folder's images stand for, frames a second; a video file has its own times.
        window: which values of pictures of more than eight bits are shown.

    Raises:
        FrameError: there is nothing there that can be read as frames.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        images = [entry for entry in path.iterdir() if _is_image(entry)]
        if all(entry.suffix.lower() == ".dcm" for entry in images) and find_slices(path):
            return DicomSeries(path, window, fps)
        if not images:
            raise FrameError(f"folder {str(path)!r} holds no image; looked for {sorted(IMAGE_SUFFIXES)}")
        return ImageFiles(str(path), sorted(images, key=_natural), fps, window=window)
    if not path.exists():
        raise FrameError(f"no file or folder at {str(path)!r}; check the path")
    if not _is_picture(path):
        return VideoFile(path)
    if sniff_file(path) == "dicom":
        return DicomFile(path, str(path), window, fps=fps)
    if is_animated(path):
        return AnimatedPicture(path)
    return ImageFiles(str(path), [path], fps, is_clip=False, window=window)


def read_clip(media: Media, num_frames: int, start_s: float = 0.0, end_s: float | None = None) -> list[Frame]:
    """Read frames spread evenly over those of an interval, in order; stamps count from the first frame of the media.

    Args:
        media: where to read.
        num_frames: at least 1. An interval that holds fewer shows some of its frames twice, as the reference does;
            an image that is no clip is shown once.
        start_s: the earliest time.
        end_s: the latest time; None is the end.

    Raises:
        QueryError: num_frames or an end of the interval is out of its range.
        NoFramesError: the interval holds no frame.
        FrameError: a frame cannot be decoded.
    """
    if num_frames < 1:
        raise QueryError(f"a clip needs at least 1 frame, got {num_frames}")
    first, last = _interval(media, start_s, end_s)
    count = num_frames if media.is_clip else 1
    frames: dict[int, Frame] = {}
    indices = np.round(np.linspace(first, last, count)).astype(int).tolist()
    for i in indices:
        if i not in frames:
            frames[i] = Frame(image=media.read(i), stamp_ns=int(media.stamps_ns[i]), camera=media.name)
    return [frames[i] for i in indices]


def _interval(media: Media, start_s: float, end_s: float | None) -> tuple[int, int]:
    """Return the first and last frame that are shown in an interval."""
    last_s = int(media.stamps_ns[-1]) / NS_PER_S
    end_s = last_s if end_s is None else end_s
    if not 0 <= start_s <= end_s:
        raise QueryError(f"an interval needs 0 <= start <= end, got {start_s:g} s to {end_s:g} s")
    ends_ns = np.array([start_s, min(end_s, last_s + 1)]) * NS_PER_S + (-_NUDGE_NS, _NUDGE_NS)
    first = int(np.searchsorted(media.stamps_ns, ends_ns[0]))
    last = int(np.searchsorted(media.stamps_ns, ends_ns[1], side="right")) - 1
    if first > last:
        raise NoFramesError(f"{media.name} has no frame from {start_s:g} s to {end_s:g} s; it ends at {last_s:.3f} s")
    return first, last


def _is_picture(path: Path) -> bool:
    """Whether a file is a picture, by its first bytes; GIF, which moves as a rule, is a video."""
    if path.suffix.lower() in JPEG_STREAM_SUFFIXES or not path.is_file():
        return False
    return sniff_file(path) not in ("", "gif") or path.suffix.lower() in IMAGE_SUFFIXES


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key under which runs of digits count as numbers."""
    parts = re.split(r"(\d+)", path.name.lower())
    return [(int(part), "") if part.isdigit() and part.isascii() else (-1, part) for part in parts]
