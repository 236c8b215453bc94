"""Animated WebP and AVIF pictures: frames with the times of the file, through Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from nvila_ros.errors import FrameError
from nvila_ros.video.picture_headers import sniff_file
from nvila_ros.video.pictures import open_picture, read_file, read_picture_header, to_rgb

_ANIMATED = frozenset({"avif", "webp"})
_NS_PER_MS = 1_000_000


def is_animated(path: Path) -> bool:
    """Whether a picture moves.

    Raises:
        FrameError: it is damaged, or too large.
    """
    if sniff_file(path) not in _ANIMATED:
        return False
    with _open(path) as image:
        return getattr(image, "n_frames", 1) > 1


class AnimatedPicture:
    """An animated picture; reading forward is cheap, going back decodes it from its beginning.

    Attributes:
        name: its path.
        num_frames: those that are shown.
        stamps_ns: (F,) int64, when each frame is shown, from the first.
        is_clip: True.

    Raises:
        FrameError: it is damaged, or too large.
    """

    is_clip = True

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._image = _open(path)
        self.num_frames = int(getattr(self._image, "n_frames", 1))
        durations_ms = [self._durations_ms(index) for index in range(self.num_frames)]
        self.stamps_ns = np.cumsum([0, *durations_ms[:-1]]).astype(np.int64) * _NS_PER_MS

    @property
    def fps(self) -> float:
        """Mean frames a second."""
        span_ns = int(self.stamps_ns[-1])
        return (self.num_frames - 1) * 1e9 / span_ns if span_ns else 1.0

    def read(self, index: int) -> np.ndarray:
        """Return frame `index`, (H, W, 3) uint8 RGB.

        Raises:
            FrameError: there is no such frame, or the file is damaged there.
        """
        if not 0 <= index < self.num_frames:
            raise FrameError(f"frame index must lie in [0, {self.num_frames - 1}] of {self.name}, got {index}")
        self._load(index)
        return to_rgb(self._image)

    def close(self) -> None:
        """Close the file."""
        self._image.close()

    def _durations_ms(self, index: int) -> int:
        self._load(index)
        return max(1, round(self._image.info.get("duration") or 0))

    def _load(self, index: int) -> None:
        try:
            self._image.seek(index)
            self._image.load()
        except Exception as error:  # of damaged bytes Pillow raises nearly anything
            raise FrameError(
                f"frame {index} of {self.num_frames} of {self.name} cannot be decoded; the file is damaged"
            ) from error


def _open(path: Path) -> Image.Image:
    content = read_file(path)
    return open_picture(read_picture_header(content).kind, content)
