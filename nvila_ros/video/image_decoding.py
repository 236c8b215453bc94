"""Pixels as cameras send them, to RGB: one table of encodings, in the terms of sensor_msgs/Image.

In: bytes with a row step, which may pad each row, in either byte order. Out: (H, W, 3) uint8 RGB. `check_layout` costs
microseconds and is for the moment of arrival, where a broken camera should be named; `decode` is for the few frames
that are looked at.

Sixteen bits become eight by taking the high byte, so a dark 12-bit image stays dark: no guess is made about exposure.
Of `mono16` a window may say otherwise (see `windowing`).
Bayer is OpenCV's bilinear. Its constants are named by the second row and second column of the pattern, sensor_msgs by
the first, hence BG where ROS says rggb. YUV is BT.601 with the range of video, as cameras send it. A table of our own,
since PyPI's cv-bridge ignores the row step and reads 16 bits as 8, both without a word.

Source: sensor_msgs/image_encodings.hpp; OpenCV, color conversions.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from nvila_ros.errors import FrameError
from nvila_ros.types import RawImage
from nvila_ros.video.windowing import FILE, FULL, parse_window, show_values


@dataclass(frozen=True, slots=True)
class Layout:
    """How an encoding lays out its pixels.

    Attributes:
        num_channels: per pixel, of `channel_bytes` each; a YUV 4:2:2 pixel has two, brightness and half a colour.
        channel_bytes: 1 or 2.
        code: OpenCV's conversion to RGB; None if the first three channels are RGB.
        rows: rows that are sent per two rows of the image: 3 where half-size colour follows the brightness.
        even_width: whether two columns share a colour.
    """

    num_channels: int
    channel_bytes: int = 1
    code: int | None = None
    rows: int = 2
    even_width: bool = False

    @property
    def even_height(self) -> bool:
        """Whether two rows share a colour."""
        return self.rows != 2


_UYVY = Layout(2, code=cv2.COLOR_YUV2RGB_UYVY, even_width=True)
_YUYV = Layout(2, code=cv2.COLOR_YUV2RGB_YUY2, even_width=True)

LAYOUT_BY_ENCODING: dict[str, Layout] = {
    "rgb8": Layout(3),
    "rgba8": Layout(4),
    "bgr8": Layout(3, code=cv2.COLOR_BGR2RGB),
    "bgra8": Layout(4, code=cv2.COLOR_BGRA2RGB),
    "mono8": Layout(1, code=cv2.COLOR_GRAY2RGB),
    "rgb16": Layout(3, 2),
    "rgba16": Layout(4, 2),
    "bgr16": Layout(3, 2, cv2.COLOR_BGR2RGB),
    "bgra16": Layout(4, 2, cv2.COLOR_BGRA2RGB),
    "mono16": Layout(1, 2, cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": Layout(1, code=cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": Layout(1, code=cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": Layout(1, code=cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": Layout(1, code=cv2.COLOR_BayerGB2RGB),
    "bayer_rggb16": Layout(1, 2, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr16": Layout(1, 2, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg16": Layout(1, 2, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg16": Layout(1, 2, cv2.COLOR_BayerGB2RGB),
    "uyvy": _UYVY,
    "yuv422": _UYVY,
    "yuyv": _YUYV,
    "yuv422_yuy2": _YUYV,
    "nv12": Layout(1, code=cv2.COLOR_YUV2RGB_NV12, rows=3, even_width=True),
    "nv21": Layout(1, code=cv2.COLOR_YUV2RGB_NV21, rows=3, even_width=True),
}
"""Every encoding that is decoded here, by its name in sensor_msgs."""

MIN_BAYER_PX = 3
"""OpenCV interpolates the inside and copies it to the border: below this there is no inside, and it returns black."""


def check_layout(raw: RawImage) -> None:
    """Check that size, step and data agree, without touching the pixels.

    Raises:
        FrameError: the encoding is not in the table, a size is zero, odd or too small, rows overlap, or the data is
            not as long as its rows.
    """
    layout = _layout(raw.encoding)
    check_size(raw)
    needed = raw.width * layout.num_channels * layout.channel_bytes
    if raw.step < needed:
        raise FrameError(f"step must be at least {needed} bytes for {raw.width} px of {raw.encoding}, got {raw.step}")
    if (layout.even_width and raw.width % 2) or (layout.even_height and raw.height % 2):
        raise FrameError(f"{raw.encoding} shares colours between pixels and needs an even size, got {_size(raw)}")
    if raw.encoding.startswith("bayer") and min(raw.width, raw.height) < MIN_BAYER_PX:
        raise FrameError(f"{raw.encoding} needs at least {MIN_BAYER_PX}x{MIN_BAYER_PX} px, got {_size(raw)}")
    expected = raw.step * raw.height * layout.rows // 2
    if raw.data.size != expected:
        raise FrameError(
            f"data of {_size(raw)} {raw.encoding} with step {raw.step} must have {expected} bytes, got {raw.data.size}"
        )


def check_size(raw: RawImage) -> None:
    """Check what holds for every encoding.

    Raises:
        FrameError: width or height is zero.
    """
    if not raw.width or not raw.height:
        raise FrameError(f"width and height must be positive, got {_size(raw)}")


def decode(raw: RawImage) -> np.ndarray:
    """Convert an image to RGB.

    Returns:
        (H, W, 3) uint8 RGB, contiguous; it may share its memory with `raw` and is not to be written to.

    Raises:
        FrameError: as `check_layout`.
    """
    check_layout(raw)
    layout = LAYOUT_BY_ENCODING[raw.encoding]
    num_rows = raw.height * layout.rows // 2
    rows = raw.data.reshape(num_rows, raw.step)[:, : raw.width * layout.num_channels * layout.channel_bytes]
    if raw.encoding == "mono16" and raw.window not in (FULL, FILE):
        values = np.ascontiguousarray(rows).view(">u2" if raw.is_bigendian else "<u2").astype(np.uint16)
        return np.asarray(cv2.cvtColor(show_values(values, parse_window(raw.window)), cv2.COLOR_GRAY2RGB))
    if layout.channel_bytes == 2:
        rows = rows[:, 0 if raw.is_bigendian else 1 :: 2]
    pixels = np.ascontiguousarray(rows.reshape(num_rows, raw.width, layout.num_channels))
    if layout.code is None:
        return np.ascontiguousarray(pixels[:, :, :3])
    return np.asarray(cv2.cvtColor(pixels, layout.code))


def _layout(encoding: str) -> Layout:
    if encoding not in LAYOUT_BY_ENCODING:
        known = ", ".join(sorted(LAYOUT_BY_ENCODING))
        raise FrameError(f"unknown image encoding {encoding!r}; known are {known}, or install ROS's cv_bridge")
    return LAYOUT_BY_ENCODING[encoding]


def _size(raw: RawImage) -> str:
    return f"{raw.width}x{raw.height}"
