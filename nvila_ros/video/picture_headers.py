"""What the first bytes of a picture's file say: of which kind it is, and how large; nothing is decoded.

Source: ITU-T T.81 annex B (JPEG); W3C, PNG; the containers of GIF, WebP, TIFF, BMP, Netpbm and ISO/IEC 23008-12 (HEIF).
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

from nvila_ros.errors import FrameError
from nvila_ros.files import open_regular

MAX_PIXELS = 1 << 25
"""Most pixels of a picture: 8K video has 33.2 million, just below."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
_BMP_HEADERS = frozenset(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))
_HEAD_BYTES = 132  # the mark of DICOM is the farthest
_MAX_SEGMENTS = 256  # of a JPEG before its frame header: there are few tables, and metadata comes 64 KiB at a time
_FRAME_HEADERS = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive, all of them Huffman-coded
_OTHER_CODINGS = frozenset(range(0xC3, 0xD0)) - {0xC4, 0xC8, 0xCC}  # lossless, hierarchical, arithmetic
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 1, 6: 3}  # by colour type, beside transparency


@dataclass(frozen=True, slots=True)
class PictureHeader:
    """What a file says of its picture.

    Attributes:
        kind: of the file, such as `jpeg`.
        width: px.
        height: px.
        num_channels: 1 or 3, without alpha; 4 of a CMYK picture; 0 where only decoding shows it.
        num_bytes: where the header ends; 0 where that is not known.
    """

    kind: str
    width: int
    height: int
    num_channels: int = 0
    num_bytes: int = 0


def sniff(content: bytes) -> str:
    """Return of what kind a file's first bytes are: a key of the formats read here, `heic`, or empty for any other."""
    if content[128:132] == b"DICM":  # first: the 128 bytes before may look like anything
        return "dicom"
    if content.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if content.startswith(PNG_SIGNATURE):
        return "png"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "tiff"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if content[:2] == b"BM" and content[14:18] in _BMP_HEADERS:
        return "bmp"
    if re.match(rb"P[1-6][ \t\r\n#]", content):
        return "pnm"
    return _sniff_heif(content)


def _sniff_heif(content: bytes) -> str:
    if content[4:8] != b"ftyp":
        return ""
    length = min(int.from_bytes(content[:4], "big"), len(content))
    brands = {content[8:12], *(content[at : at + 4] for at in range(16, length - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return "avif"
    return "heic" if content[8:12] in _HEIF_BRANDS else ""


def sniff_file(path: Path) -> str:
    """Return of what kind a file is, as `sniff`.

    Raises:
        FrameError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            return sniff(file.read(_HEAD_BYTES))
    except (OSError, ValueError) as error:
        raise FrameError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def check_pixels(width: int, height: int, where: str) -> None:
    """Check the size of a picture before it is decoded.

    Raises:
        FrameError: it has no pixel, or more than `MAX_PIXELS`.
    """
    if not 0 < width * height <= MAX_PIXELS:
        raise FrameError(f"a picture must have 1 to {MAX_PIXELS} px, got {width}x{height} in {where}")


def check_heic(kind: str) -> None:
    """Refuse the pictures of phones that no decoder here reads whole.

    Raises:
        FrameError: it is one.
    """
    if kind == "heic":
        raise FrameError("HEIC and HEIF pictures are not read; convert to JPEG: heif-convert PICTURE.heic PICTURE.jpg")


def peek_header(kind: str, content: bytes) -> PictureHeader | None:
    """Read what a file says of its picture, of the kinds where that takes microseconds; None of the others.

    Raises:
        FrameError: the file is cut off within its header, or of a coding that is not read.
    """
    try:
        if kind == "jpeg":
            return _jpeg_header(content)
        if kind == "png":
            return _png_header(content)
        if kind == "webp":
            return PictureHeader("webp", *_webp_size(content))
        return PictureHeader("gif", *struct.unpack_from("<HH", content, 6)) if kind == "gif" else None
    except struct.error as error:
        raise FrameError(f"{kind} file of {len(content)} bytes is cut off within its header") from error


def _jpeg_header(content: bytes) -> PictureHeader:
    """Walk over the segments before the frame header; struct.error means that the file ends there."""
    at = 2
    for _ in range(_MAX_SEGMENTS):
        lead, marker, length = struct.unpack_from(">BBH", content, at)
        if lead == marker == 0xFF:  # any marker may stand behind some of these
            at += 1
            continue
        if marker in _FRAME_HEADERS:
            depth, height, width, num_channels = struct.unpack_from(">BHHB", content, at + 4)
            if depth != 8 or num_channels not in (1, 3, 4):
                raise FrameError(f"a jpeg must have 1, 3 or 4 channels of 8 bits, got {num_channels} of {depth}")
            return PictureHeader("jpeg", width, height, num_channels, at + 2 + length)
        if marker in _OTHER_CODINGS:
            raise FrameError(f"a jpeg must be baseline or progressive with Huffman codes, got frame header {marker:#x}")
        if lead != 0xFF or marker < 0xC0 or 0xD0 <= marker <= 0xDA:
            raise FrameError(f"a jpeg must have its frame header before its pixels, got {lead:02x} {marker:02x}")
        at += 2 + length
    raise FrameError(f"a jpeg must have its frame header among its first {_MAX_SEGMENTS} segments, got none")


def _png_header(content: bytes) -> PictureHeader:
    name, width, height, _, colour_type = struct.unpack_from(">4sIIBB", content, 12)
    if name != b"IHDR" or colour_type not in _PNG_CHANNELS:
        raise FrameError(f"a png must begin with a header of a known colour type, got {name!r} of {colour_type}")
    return PictureHeader("png", width, height, _PNG_CHANNELS[colour_type], 33)


def _webp_size(content: bytes) -> tuple[int, int]:
    """Return width and height of the canvas."""
    name = content[12:16]
    if name == b"VP8X":
        width, height = (int.from_bytes(content[at : at + 3].ljust(3, b"\0"), "little") + 1 for at in (24, 27))
        return width, height
    if name == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if name != b"VP8 ":
        raise FrameError(f"a webp must begin with VP8, VP8L or VP8X, got {name!r}")
    width, height = struct.unpack_from("<HH", content, 26)
    return width & 0x3FFF, height & 0x3FFF
