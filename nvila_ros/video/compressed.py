"""Compressed pictures as cameras send them, to RGB: JPEG and PNG files, in the terms of sensor_msgs/CompressedImage.

In: the bytes of a file and what the sender says of them: `jpeg`, `png`, or image_transport's `rgb8; jpeg compressed
bgr8`, which is what the camera gave, the file's kind and what the file was filled with. Out: (H, W, 3) uint8 RGB.
`read_header` costs microseconds and is for the moment of arrival: it learns the size from the file's header and refuses
what would decode to more than `MAX_PIXELS`, so that a small file cannot ask for much memory.

Two things that a sender says change the colours. A file filled with `rgb` has red and blue the wrong way round, since
image_transport hands all files to OpenCV, which takes them for BGR. A Bayer camera's mosaic is compressed as it is, and
its colours are interpolated here. Sixteen bits become eight as in `image_decoding`. An orientation in EXIF is not
followed: calibration and tf know the picture as it lies in the file.

A file that is cut off is refused. One that is damaged within a JPEG's pixels is shown with the damage, which nothing
but eyes can tell.

Source: ITU-T T.81 annex B (JPEG); W3C, PNG; image_transport_plugins, compressed_image_transport.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

import cv2
import numpy as np

from nvila_ros.errors import FrameError
from nvila_ros.types import EncodedImage, RawImage
from nvila_ros.video.image_decoding import decode

MAX_PIXELS = 1 << 25
"""Most pixels of a picture: 8K video has 33.2 million, just below."""

_CODECS = {"jpeg": "jpeg", "jpg": "jpeg", "png": "png"}
_SIGNATURES = {"jpeg": b"\xff\xd8\xff", "png": b"\x89PNG\r\n\x1a\n"}
_ENDS = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}
_MAX_SEGMENTS = 256  # of a JPEG before its frame header: there are few tables, and metadata comes 64 KiB at a time
_FRAME_HEADERS = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive, all of them Huffman-coded
_OTHER_CODINGS = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}  # lossless, hierarchical, arithmetic
_COLOUR_TYPES = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}  # of PNG: channels beside transparency
_TRANSPORT = re.compile(r"(\w+)(?: compressed ?(\w*))?")
_PICTURE = re.compile(r"(rgba?|bgra?|mono|bayer_(rggb|bggr|gbrg|grbg))(8|16)")
_REDUCED = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
)


@dataclass(frozen=True, slots=True)
class Format:
    """What a format string says.

    Attributes:
        codec: `jpeg` or `png`.
        encoding: of the camera, in sensor_msgs' names; empty where it is not said.
        filled_with: what the camera's pixels were converted to for the file; empty where they were not.
    """

    codec: str
    encoding: str = ""
    filled_with: str = ""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its picture; `num_channels` is 1 or 3, `num_bytes` is where the header ends."""

    width: int
    height: int
    num_channels: int
    num_bytes: int


def read_format(text: str) -> Format:
    """Read a format string.

    Raises:
        FrameError: it does not name a picture in a JPEG or PNG file.
    """
    encoding, _, transport = (part.strip() for part in text.rpartition(";"))
    match = _TRANSPORT.fullmatch(transport)
    if match is None or match[1].lower() not in _CODECS:
        raise FrameError(
            f"unknown format {text!r} of a compressed image; known are jpeg and png, alone or as image_transport's "
            "'rgb8; jpeg compressed bgr8'"
        )
    content = match[2] or encoding
    if content and not _PICTURE.fullmatch(content):
        raise FrameError(f"format {text!r} must be of a picture in colour or mono, got {content}; use another topic")
    return Format(_CODECS[match[1].lower()], encoding, match[2] or "")


def read_header(data: np.ndarray, text: str) -> Header:
    """Read what a file says of itself, without decoding it.

    Args:
        data: (num_bytes,) uint8, the whole file.
        text: the sender's format string.

    Raises:
        FrameError: the format is unknown, or the file is of another kind, cut off, of a coding that cameras do not
            send, or larger than `MAX_PIXELS`.
    """
    codec, content = read_format(text).codec, data.tobytes()
    if not content.startswith(_SIGNATURES[codec]):
        begins = content[:4].hex(" ") or "nothing"
        raise FrameError(f"data of format {text!r} must begin as a {codec} file does, got {begins}")
    try:
        header = _jpeg_header(content) if codec == "jpeg" else _png_header(content)
    except struct.error as error:
        raise FrameError(f"{codec} file of {len(content)} bytes is cut off within its header") from error
    if not 0 < header.width * header.height <= MAX_PIXELS:
        raise FrameError(f"a picture must have 1 to {MAX_PIXELS} px, got {header.width}x{header.height} in a {codec}")
    if content.rfind(_ENDS[codec]) < header.num_bytes:
        raise FrameError(f"{codec} file of {len(content)} bytes is cut off: its end marker is missing")
    return header


def decode_compressed(image: EncodedImage) -> np.ndarray:
    """Convert a compressed picture to RGB.

    Returns:
        (H, W, 3) uint8 RGB, contiguous.

    Raises:
        FrameError: as `read_header`, or the file is damaged further in.
    """
    header, form = read_header(image.data, image.format), read_format(image.format)
    is_mosaic = form.encoding.startswith("bayer") and not form.filled_with and header.num_channels == 1
    flags = cv2.IMREAD_GRAYSCALE if is_mosaic else cv2.IMREAD_COLOR
    pixels = _imdecode(image, flags | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels.shape[:2] != (header.height, header.width):
        raise FrameError(
            f"{form.codec} of {header.width}x{header.height} px was decoded to {pixels.shape}; send another"
        )
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if is_mosaic:
        return _demosaic(pixels, form.encoding.rstrip("0123456789") + "8")
    if form.filled_with.startswith("rgb"):
        return pixels
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))


def decode_gray(image: EncodedImage, least_px: int) -> np.ndarray:
    """Decode a compressed picture to grey, as small as is cheap: a JPEG need not be decoded at full size.

    Args:
        image: the picture.
        least_px: what neither side may fall below, unless the picture itself does.

    Returns:
        (h, w) uint8; a Bayer mosaic is left as it is.

    Raises:
        FrameError: as `decode_compressed`.
    """
    header = read_header(image.data, image.format)
    side = min(header.width, header.height)
    flags = next((flag for shrink, flag in _REDUCED if side >= shrink * least_px), cv2.IMREAD_GRAYSCALE)
    return _imdecode(image, flags | cv2.IMREAD_IGNORE_ORIENTATION)


def _imdecode(image: EncodedImage, flags: int) -> np.ndarray:
    try:
        pixels = cv2.imdecode(image.data, flags)
    except cv2.error as error:
        raise FrameError(f"compressed image of format {image.format!r} cannot be decoded: {error.err}") from error
    if pixels is None:
        raise FrameError(
            f"compressed image of format {image.format!r} is damaged; its {image.data.size} bytes do not "
            f"decode to {image.width}x{image.height} px"
        )
    return np.asarray(pixels)


def _demosaic(pixels: np.ndarray, encoding: str) -> np.ndarray:
    height, width = pixels.shape
    return decode(RawImage(data=pixels.reshape(-1), encoding=encoding, width=width, height=height, step=width))


def _jpeg_header(content: bytes) -> Header:
    """Walk over the segments before the frame header; struct.error means that the file ends there."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        lead, marker, length = struct.unpack_from(">BBH", content, at)
        if lead == marker == 0xFF:  # any marker may stand behind some of these
            at += 1
            continue
        if marker in _FRAME_HEADERS:
            depth, height, width, num_channels = struct.unpack_from(">BHHB", content, at + 4)
            if depth != 8 or num_channels not in (1, 3):
                raise FrameError(f"a jpeg must have 1 or 3 channels of 8 bits, got {num_channels} of {depth}")
            return Header(width, height, num_channels, at + 2 + length)
        if marker in _OTHER_CODINGS:
            raise FrameError(f"a jpeg must be baseline or progressive with Huffman codes, got frame header {marker:#x}")
        if lead != 0xFF or marker < 0xC0 or 0xD0 <= marker <= 0xDA:
            raise FrameError(f"a jpeg must have its frame header before its pixels, got {lead:02x} {marker:02x}")
        at += 2 + length
    raise FrameError(f"a jpeg must have its frame header among its first {_MAX_SEGMENTS} segments, got none")


def _png_header(content: bytes) -> Header:
    name, width, height, _, colour_type = struct.unpack_from(">4sIIBB", content, 12)
    if name != b"IHDR" or colour_type not in _COLOUR_TYPES:
        raise FrameError(f"a png must begin with a header of a known colour type, got {name!r} of {colour_type}")
    return Header(width, height, _COLOUR_TYPES[colour_type], 33)
