"""A frame in a nutshell: 32x32 grey levels, cheap enough to ask of every frame of a window.

In: a frame as its camera sent it. Out: (32, 32) uint8, squeezed to a square whatever the aspect. A raw image is not
converted: 128x128 of its pixels are picked, those are made grey and averaged 4x4, which keeps most of the noise out. A
JPEG is decoded at an eighth of its size or the like; a PNG has no such short cut and costs its whole decoding.

Grey is brightness for RGB, Y itself for YUV, and the mean of a Bayer block. Thumbnails of one camera are to be compared
with each other, not with those of another.
"""

from __future__ import annotations

import cv2
import numpy as np

from nvila_ros.types import EncodedImage, RawFrame, RawImage
from nvila_ros.video.compressed import decode_gray
from nvila_ros.video.image_decoding import LAYOUT_BY_ENCODING, check_layout, decode

SIDE = 32
"""Pixels of a thumbnail's width and height."""
KEPT_FROM_BYTES = 16 << 10
"""Frames of fewer bytes keep no thumbnail: beside those it would weigh, and it is made of them in no time."""

_PICKED = 4 * SIDE
_Y_BYTES = {cv2.COLOR_YUV2RGB_UYVY: 1, cv2.COLOR_YUV2RGB_YUY2: 0, cv2.COLOR_YUV2RGB_NV12: 0, cv2.COLOR_YUV2RGB_NV21: 0}


def thumbnail(frame: RawFrame) -> np.ndarray:
    """Return the thumbnail of a frame, (32, 32) uint8, not to be written to; it is made once and kept with the frame.

    Raises:
        FrameError: the frame cannot be decoded here, see `image_decoding` and `compressed`.
    """
    if frame.memo.thumbnail is not None:
        return frame.memo.thumbnail
    image = frame.image
    gray = decode_gray(image, 2 * SIDE) if isinstance(image, EncodedImage) else _pick_gray(image)
    small = np.asarray(cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA))
    if frame.num_bytes >= KEPT_FROM_BYTES:
        frame.memo.thumbnail = small
    return small


def is_like(one: np.ndarray, two: np.ndarray, threshold: float) -> bool:
    """Return whether two thumbnails differ nowhere by more than a share of full scale."""
    return bool(np.abs(one.astype(np.int16) - two).max() <= threshold * 255)


def _pick_gray(raw: RawImage) -> np.ndarray:
    """Return (128, 128) uint8 of single pixels, evenly spread."""
    check_layout(raw)
    layout = LAYOUT_BY_ENCODING[raw.encoding]
    pixel_bytes = layout.num_channels * layout.channel_bytes
    rows = raw.data.reshape(-1, raw.step)[: raw.height, : raw.width * pixel_bytes]
    high_byte = 0 if raw.is_bigendian else layout.channel_bytes - 1
    if raw.encoding.startswith("bayer"):
        return _pick_blocks(rows[:, high_byte :: layout.channel_bytes])
    picked = _pick(rows.reshape(raw.height, raw.width, pixel_bytes))
    if layout.code in _Y_BYTES:
        return picked[..., _Y_BYTES[layout.code]]
    small = RawImage(
        data=picked.reshape(-1),
        encoding=raw.encoding,
        width=_PICKED,
        height=_PICKED,
        step=_PICKED * pixel_bytes,
        is_bigendian=raw.is_bigendian,
        window=raw.window,
    )
    return np.asarray(cv2.cvtColor(decode(small), cv2.COLOR_RGB2GRAY))


def _pick_blocks(mosaic: np.ndarray) -> np.ndarray:
    """Return (128, 512) uint8: the four pixels of single 2x2 blocks of a Bayer mosaic (H, W), side by side."""
    height, width = (side // 2 * 2 for side in mosaic.shape)
    even, odd = (_pick(mosaic[row:height:2, :width].reshape(height // 2, width // 2, 2)) for row in (0, 1))
    return np.concatenate([even, odd], axis=2).reshape(_PICKED, -1)


def _pick(pixels: np.ndarray) -> np.ndarray:
    """Return (128, 128, C) of (H, W, C) uint8, and leave the others unread."""
    picked = cv2.resize(pixels, (_PICKED, _PICKED), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(picked).reshape(_PICKED, _PICKED, pixels.shape[2])
