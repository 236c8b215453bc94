"""A frame whose pixels are converted only if somebody looks at them: most that are asked about are known already."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nvila_ros.types import Frame, RawFrame


class DeferredFrame:
    """A frame as it came, with what `Frame` has.

    Args:
        raw: the frame.
        decode: converts it; raises FrameError.
    """

    def __init__(self, raw: RawFrame, decode: Callable[[RawFrame], Frame]) -> None:
        self.raw, self._decode = raw, decode
        self._frame: Frame | None = None
        self.stamp_ns, self.camera, self.frame_id = raw.stamp_ns, raw.camera, raw.frame_id

    @property
    def digest(self) -> bytes:
        """What stands for the pixels, as they came."""
        return self.raw.digest

    @property
    def image(self) -> np.ndarray:
        """The pixels, (H, W, 3) uint8 RGB.

        Raises:
            FrameError: they cannot be converted.
        """
        if self._frame is None:
            self._frame = self._decode(self.raw)
        return self._frame.image
