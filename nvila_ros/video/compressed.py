"""Compressed pictures as cameras send them, to RGB, in the terms of sensor_msgs/CompressedImage.

In: the bytes of a file and what the sender says of them: nothing, `jpeg`, a text of the sender's own, or
image_transport's `rgb8; jpeg compressed bgr8`, which is what the camera gave, the file's kind and what the file was
filled with. Out: (H, W, 3) uint8 RGB. The bytes say of what kind the file is (see `pictures`). `read_header` costs
microseconds for a JPEG or PNG and is for the moment of arrival: it learns the size from the file's header and refuses
what is too large or cut off.

Two things that a sender says change the colours. A file filled with `rgb` has red and blue the wrong way round, since
image_transport hands all files to OpenCV, which takes them for BGR. A Bayer camera's mosaic is compressed as it is, and
its colours are interpolated here. Sixteen bits become eight as in `image_decoding`. An orientation in EXIF is not
followed: calibration and tf know the picture as it lies in the file.

A file that is cut off is refused on arrival; one that is damaged within its pixels when it is decoded. OpenCV decodes
JPEG, to the same values as Pillow and faster, after the check for damage.

Source: sensor_msgs/CompressedImage; image_transport_plugins, compressed_image_transport.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import cv2
import numpy as np

from nvila_ros.errors import FrameError
from nvila_ros.types import EncodedImage, RawImage
from nvila_ros.video.image_decoding import decode
from nvila_ros.video.picture_headers import PictureHeader, sniff
from nvila_ros.video.pictures import check_damage, read_picture_header, read_pixels
from nvila_ros.video.windowing import parse_window

_TRANSPORT = re.compile(r"(?:jpe?g|png|tiff)(?: compressed ?(\w*))?", re.IGNORECASE)
_PICTURE = re.compile(r"(rgba?|bgra?|mono|bayer_(rggb|bggr|gbrg|grbg))(8|16)")
_REDUCED = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
)


@dataclass(frozen=True, slots=True)
class Format:
    """What a format string says of the colours.

    Attributes:
        encoding: of the camera, in sensor_msgs' names; empty where it is not said.
        filled_with: what the camera's pixels were converted to for the file; empty where they were not.
    """

    encoding: str = ""
    filled_with: str = ""


def read_format(text: str) -> Format:
    """Read a format string. One that does not follow image_transport's pattern says nothing of the colours.

    Raises:
        FrameError: it says that the file is no picture in colour or mono, such as a depth image.
    """
    encoding, _, transport = (part.strip() for part in text.rpartition(";"))
    if transport.lower().startswith("compresseddepth"):
        raise FrameError(f"format {text!r} must be of a picture in colour or mono, got depth; use another topic")
    match = _TRANSPORT.fullmatch(transport)
    if match is None:
        return Format()
    content = match[1] or encoding
    if content and not _PICTURE.fullmatch(content):
        raise FrameError(f"format {text!r} must be of a picture in colour or mono, got {content}; use another topic")
    return Format(encoding, match[1] or "")


def read_header(data: np.ndarray, text: str) -> PictureHeader:
    """Read what a file says of itself, without decoding it.

    Args:
        data: (num_bytes,) uint8, the whole file.
        text: the sender's format string.

    Raises:
        FrameError: the format is of no picture, or the file is of an unknown kind, cut off, of a coding that cameras do
            not send, or too large.
    """
    read_format(text)
    content = data.tobytes()
    if not sniff(content):
        begins = content[:4].hex(" ") or "nothing"
        raise FrameError(f"data of format {text!r} must be the file of a picture, such as jpeg or png, got {begins}")
    return read_picture_header(content)


def decode_compressed(image: EncodedImage) -> np.ndarray:
    """Convert a compressed picture to RGB.

    Returns:
        (H, W, 3) uint8 RGB, contiguous.

    Raises:
        FrameError: as `read_header`, or the file is damaged further in.
    """
    header, form = read_header(image.data, image.format), read_format(image.format)
    content = image.data.tobytes()
    check_damage(header.kind, content)
    is_mosaic = form.encoding.startswith("bayer") and not form.filled_with and header.num_channels in (0, 1)
    if header.kind == "jpeg":
        pixels = _read_jpeg(image, is_gray=is_mosaic)
    else:
        window = parse_window(image.window)
        pixels = read_pixels(header.kind, content, keep_gray=is_mosaic, window=window, is_published=True)
    if header.kind == "dicom":  # its pixels may have become square
        return pixels
    if pixels.shape[:2] != (header.height, header.width):
        raise FrameError(
            f"{header.kind} of {header.width}x{header.height} px was decoded to {pixels.shape}; send another"
        )
    if pixels.ndim == 2:
        return _demosaic(pixels, form.encoding.rstrip("0123456789") + "8")
    return np.ascontiguousarray(pixels[..., ::-1]) if form.filled_with.startswith("rgb") else pixels


def decode_gray(image: EncodedImage, least_px: int) -> np.ndarray:
    """Decode a compressed picture to grey, as small as is cheap: a JPEG need not be decoded at full size.

    Damage within the pixels of a JPEG is not looked for.

    Args:
        image: the picture.
        least_px: what neither side may fall below, unless the picture itself does.

    Returns:
        (h, w) uint8; a Bayer mosaic is left as it is.

    Raises:
        FrameError: as `read_header`, or the file cannot be decoded.
    """
    header = read_header(image.data, image.format)
    if header.kind != "jpeg":
        window = parse_window(image.window)
        pixels = read_pixels(header.kind, image.data.tobytes(), keep_gray=True, window=window, is_published=True)
        return pixels if pixels.ndim == 2 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    side = min(header.width, header.height)
    flags = next((flag for shrink, flag in _REDUCED if side >= shrink * least_px), cv2.IMREAD_GRAYSCALE)
    return _imdecode(image, flags | cv2.IMREAD_IGNORE_ORIENTATION)


def _read_jpeg(image: EncodedImage, *, is_gray: bool) -> np.ndarray:
    """Return (H, W) uint8 where grey is wanted, else (H, W, 3) uint8 RGB."""
    if is_gray:
        return _imdecode(image, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    bgr = _imdecode(image, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


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
