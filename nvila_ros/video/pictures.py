"""One still picture in a file of any common format, to RGB.

In: the bytes of a file. Out: (H, W, 3) uint8 RGB. The bytes say of which format they are, whatever the name says. The
size is read before anything is decoded, and what would decode to more than `MAX_PIXELS` is refused, so that a small
file cannot ask for much memory: decoding takes at most 64 MiB beyond the picture itself.

One decoder, Pillow, reads all formats; it allocates what a file holds and not what a file announces. A picture that is
cut off or damaged is refused. Of a JPEG that needs a second look: libjpeg, which both Pillow and OpenCV use, replaces
what it cannot read by grey. FFmpeg's decoder has an option to fail instead, so each JPEG is first read by that one, at
an eighth of its size. It finds damage that breaks the code, which is 19 of 20 random damages; the others decode to
wrong colours that no decoder could know to be wrong.

Alpha is dropped. Sixteen bits become eight by taking the high byte, or as a window says (see `windowing`). DICOM is
read by `dicom`.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nvila_ros.errors import FrameError
from nvila_ros.files import open_regular
from nvila_ros.video.dicom import DicomFile, decode_dicom
from nvila_ros.video.picture_headers import (
    MAX_PIXELS,
    PNG_SIGNATURE,
    PictureHeader,
    check_heic,
    check_pixels,
    peek_header,
    sniff,
)
from nvila_ros.video.windowing import OWN, Window, show_values

MAX_FILE_BYTES = 9 * MAX_PIXELS
"""Most bytes of a picture's file: four channels of 16 bits, not compressed, and as much again for an eighth of it."""

_FORMATS = {
    "avif": "AVIF",
    "bmp": "BMP",
    "gif": "GIF",
    "jpeg": "JPEG",
    "png": "PNG",
    "pnm": "PPM",
    "tiff": "TIFF",
    "webp": "WEBP",
}
"""Kinds of pictures, by Pillow's names."""
_TILE_TAGS = (322, 323)  # of TIFF: width and length
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"})
_MAX_PNG_CHUNKS = 1 << 16  # encoders write 8 KiB at a time and more


def read_picture_header(content: bytes) -> PictureHeader:
    """Read kind and size of a picture, and whether it is whole as far as that is seen without decoding.

    Args:
        content: the whole file.

    Raises:
        FrameError: it is of no known kind, is cut off, of a coding that is not read, or larger than `MAX_PIXELS`.
    """
    kind = sniff(content)
    if kind == "dicom":
        file = DicomFile(content, "a DICOM picture", OWN)
        return PictureHeader(kind, file.width, file.height)
    _check_kind(kind, content)
    header = peek_header(kind, content)
    if header is None:
        with open_picture(kind, content) as image:
            header = PictureHeader(kind, *image.size)
    check_pixels(header.width, header.height, f"a {kind}")
    end = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82"}.get(kind)
    if end is not None and content.rfind(end) < header.num_bytes:
        raise FrameError(f"{kind} file of {len(content)} bytes is cut off: its end marker is missing")
    return header


def _check_kind(kind: str, content: bytes) -> None:
    check_heic(kind)
    if kind not in _FORMATS:
        begins = content[:4].hex(" ") or "nothing"
        raise FrameError(f"known kinds of pictures are {', '.join(sorted(_FORMATS))}; this file begins with {begins}")
    Image.init()
    if _FORMATS[kind] not in Image.OPEN:
        raise FrameError(f"this Pillow reads no {kind}; install a newer one with it (AVIF came with Pillow 11.3)")


def open_picture(kind: str, content: bytes) -> Image.Image:
    """Open a picture in Pillow, which decodes it when its pixels are asked for.

    Raises:
        FrameError: it is damaged, or too large.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=[_FORMATS[kind]])
        check_pixels(*image.size, f"a {kind}")
        _check_tiles(image)
    except FrameError:
        raise
    except Exception as error:  # of damaged bytes Pillow raises nearly anything
        raise _damage(kind, content, error) from error
    return image


def _check_tiles(image: Image.Image) -> None:
    """Refuse a TIFF whose tiles are much larger than its picture, since each is decoded as a whole."""
    tags = getattr(image, "tag_v2", None) or {}
    width, height = (int(tags.get(tag, 0)) for tag in _TILE_TAGS)
    if width * height > max(4 * image.width * image.height, 1 << 20):
        raise FrameError(f"tiles of a tiff must be no larger than its picture of {image.size} px, got {width}x{height}")


def decode_picture(content: bytes, *, follow_orientation: bool = True, window: Window = OWN) -> np.ndarray:
    """Decode a picture.

    Args:
        content: the whole file.
        follow_orientation: turn it as EXIF says, as viewers do.
        window: which values of more than eight bits are shown.

    Returns:
        (H, W, 3) uint8 RGB, contiguous.

    Raises:
        FrameError: as `read_picture_header`, or it is cut off or damaged further in.
    """
    kind = read_picture_header(content).kind
    check_damage(kind, content)
    return read_pixels(kind, content, follow_orientation=follow_orientation, window=window)


def read_pixels(
    kind: str,
    content: bytes,
    *,
    follow_orientation: bool = False,
    keep_gray: bool = False,
    window: Window = OWN,
    is_published: bool = False,
) -> np.ndarray:
    """Decode a picture that was checked already.

    Args:
        kind: of its header.
        content: the whole file.
        follow_orientation: turn it as EXIF says.
        keep_gray: leave a grey picture as it is.
        window: which values of more than eight bits are shown.
        is_published: refuse a picture into which names are burned.

    Returns:
        (H, W, 3) uint8 RGB, or (H, W) uint8 of a grey picture that is kept; contiguous.

    Raises:
        FrameError: it is damaged, or too large.
    """
    if kind == "dicom":
        return decode_dicom(content, window, is_published=is_published)
    with open_picture(kind, _essential(kind, content)) as image:
        try:
            image = (ImageOps.exif_transpose(image) or image) if follow_orientation else image
            is_gray = image.mode in ("1", "L") or image.mode.startswith("I")
            rgb = to_rgb(image, window)
            return np.ascontiguousarray(rgb[..., 0]) if keep_gray and is_gray else rgb
        except FrameError:
            raise
        except Exception as error:
            raise _damage(kind, content, error) from error


def check_damage(kind: str, content: bytes) -> None:
    """Look for damage that a decoder would conceal.

    Raises:
        FrameError: there is some.
    """
    if kind == "jpeg":
        _check_jpeg(content)
    elif kind == "png":
        for _ in _png_chunks(content):
            pass


def _essential(kind: str, content: bytes) -> bytes:
    """Return a file without what its pixels do not need: text in a PNG may be much once it is unpacked."""
    if kind != "png":
        return content
    kept = [chunk for name, chunk in _png_chunks(content) if name in _PNG_KEPT]
    return b"".join([PNG_SIGNATURE, *kept])


def to_rgb(image: Image.Image, window: Window = OWN) -> np.ndarray:
    """Return an image of Pillow as (H, W, 3) uint8 RGB; of more than eight bits, what a window shows.

    Raises:
        FrameError: its pixels are of more than 16 bits.
    """
    if image.mode == "F" or image.mode.startswith("I"):
        return np.repeat(show_values(_sixteen_bits(np.asarray(image)), window)[..., None], 3, axis=2)
    return np.ascontiguousarray(image if image.mode == "RGB" else image.convert("RGB"))


def _sixteen_bits(gray: np.ndarray) -> np.ndarray:
    if gray.dtype.kind == "f" or gray.min() < 0 or gray.max() > 0xFFFF:
        raise FrameError(f"pixels must be of 8 or 16 bits, got {gray.dtype} from {gray.min():g} to {gray.max():g}")
    return gray.astype(np.uint16)


def read_file(path: Path) -> bytes:
    """Return the bytes of a picture's file.

    Raises:
        FrameError: it cannot be read, or is larger than a picture can be.
    """
    try:
        with open_regular(path) as file:
            num_bytes = os.fstat(file.fileno()).st_size
            content = file.read(num_bytes) if num_bytes <= MAX_FILE_BYTES else b""
    except (OSError, ValueError) as error:
        raise FrameError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if num_bytes > MAX_FILE_BYTES:
        raise FrameError(f"{path} must have at most {MAX_FILE_BYTES} bytes to be read as a picture, got {num_bytes}")
    return content


def _damage(kind: str, content: bytes, error: Exception) -> FrameError:
    detail = " ".join(str(error).split()) or type(error).__name__
    return FrameError(f"{kind} file of {len(content)} bytes is damaged or cut off: {detail:.200}")


def _check_jpeg(content: bytes) -> None:
    import av

    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.options = {"err_detect": "explode", "lowres": "3"}
    decoder.thread_count = 1
    try:
        frames = [*decoder.decode(av.Packet(content)), *decoder.decode(None)]
        is_damaged = any(frame.is_corrupt for frame in frames)
    except av.error.InvalidDataError:
        is_damaged = True
    except av.error.FFmpegError:  # a coding that it does not know
        is_damaged = False
    if is_damaged:
        raise FrameError(f"jpeg file of {len(content)} bytes is damaged or cut off within its pixels")


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name of each chunk up to the end of the picture, and its bytes with length and checksum.

    Raises:
        FrameError: a chunk is longer than the file, or its checksum is wrong.
    """
    at = len(PNG_SIGNATURE)
    for _ in range(_MAX_PNG_CHUNKS):
        if at + 12 > len(content):
            raise FrameError(f"png file of {len(content)} bytes is cut off: its chunks have no end")
        length, name = struct.unpack_from(">I4s", content, at)
        end = at + 12 + length
        if end > len(content):
            raise FrameError(f"png file of {len(content)} bytes is damaged: {name!r} says to have {length} bytes")
        if zlib.crc32(content[at + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            raise FrameError(f"png file of {len(content)} bytes is damaged: the checksum of its {name!r} is wrong")
        yield name, content[at:end]
        if name == b"IEND":
            return
        at = end
    raise FrameError(f"a png must have at most {_MAX_PNG_CHUNKS} chunks, got more in {len(content)} bytes")
