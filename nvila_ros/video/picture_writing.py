"""Frames as files for whoever looks at them elsewhere: viewers of the page, a server that runs the model."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from nvila_ros.errors import FrameError
from nvila_ros.types import EncodedImage
from nvila_ros.video.picture_headers import sniff

LOSSLESS = 0
"""The quality that stands for PNG, which keeps every pixel."""


def as_file(
    image: object, pixels: Callable[[], np.ndarray], quality: int, *, max_width: int = 0, max_side: int = 0
) -> bytes:
    """Return a picture as JPEG, or as PNG where nothing may be lost; a JPEG that needs no change as it came.

    Args:
        image: the frame as its camera sent it.
        pixels: decodes it, (H, W, 3) uint8 RGB; called only where that is needed, and may raise FrameError.
        quality: of JPEG, 1 to 100, or `LOSSLESS`.
        max_width: px, wider ones are made smaller; 0: none is.
        max_side: px, likewise of the longer side.

    Raises:
        FrameError: OpenCV cannot write it.
    """
    if isinstance(image, EncodedImage) and image.width and sniff(image.data[:16].tobytes()) == "jpeg":
        is_small = _scale(image.width, image.height, max_width, max_side) == 1.0
        if is_small:
            return image.data.tobytes()
    found = pixels()
    height, width = found.shape[:2]
    scale = _scale(width, height, max_width, max_side)
    if scale < 1.0:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        found = np.asarray(cv2.resize(found, size, interpolation=cv2.INTER_AREA))
    suffix, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality]) if quality != LOSSLESS else (".png", [])
    is_done, content = cv2.imencode(suffix, cv2.cvtColor(found, cv2.COLOR_RGB2BGR), options)
    if not is_done:
        raise FrameError(f"OpenCV cannot write a picture of {found.shape} as {suffix[1:]}; send smaller frames")
    return bytes(content)


def _scale(width: int, height: int, max_width: int, max_side: int) -> float:
    """Return by what both sides are multiplied, at most 1."""
    by_width = max_width / width if max_width else 1.0
    by_side = max_side / max(width, height) if max_side else 1.0
    return min(1.0, by_width, by_side)
