"""Every kind of picture is read as it is, its damage is found, and no small file takes much memory."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from nvila_ros.errors import FrameError
from nvila_ros.video.animation import AnimatedPicture
from nvila_ros.video.media import ImageFiles, open_media, read_clip
from nvila_ros.video.picture_headers import MAX_PIXELS, sniff, sniff_file
from nvila_ros.video.pictures import decode_picture, read_file, read_picture_header
from nvila_ros.video.video_file import VideoFile

RNG = np.random.default_rng(0)
SMOOTH = cv2.resize(RNG.integers(0, 256, (6, 8, 3), np.uint8), (64, 48), interpolation=cv2.INTER_CUBIC)
KINDS = [
    "bmp",
    "gif",
    "jpeg",
    "png",
    "pnm",
    "tiff",
    "webp",
    *(["avif"] if ".avif" in Image.registered_extensions() else []),
]
PILLOW = {"pnm": "PPM"}
SUFFIXES = {"pnm": ".ppm", "tiff": ".tif", "jpeg": ".jpg"}


def packed(kind: str, pixels: np.ndarray = SMOOTH, **options: Any) -> bytes:
    file = io.BytesIO()
    options = {"lossless": True} | options if kind == "webp" else options
    Image.fromarray(pixels).save(file, PILLOW.get(kind, kind.upper()), **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_picture_is_read_whatever_its_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(packed(kind))

    image = read_clip(open_media(path), 8)[0].image

    tolerance = {"jpeg": 12, "avif": 12, "gif": 60}.get(kind, 0)
    assert sniff(packed(kind)) == kind
    assert np.abs(image.astype(int) - SMOOTH).mean() <= tolerance
    header = read_picture_header(packed(kind))
    assert (header.kind, header.width, header.height) == (kind, 64, 48)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gif"])
def test_picture_has_the_pixels_that_opencv_gives(kind: str) -> None:
    expected = cv2.imdecode(np.frombuffer(packed(kind), np.uint8), cv2.IMREAD_COLOR)
    if expected is None:
        pytest.skip("this OpenCV does not read it")

    np.testing.assert_array_equal(decode_picture(packed(kind)), expected[..., ::-1])


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
@pytest.mark.parametrize("kind", ["png", "tiff", "jpeg"])
def test_any_mode_becomes_rgb(kind: str, mode: str) -> None:
    gray = Image.fromarray(SMOOTH).convert("L")
    image = (
        Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
        if mode == "I;16"
        else (Image.fromarray(SMOOTH).convert(mode))
    )
    file = io.BytesIO()
    try:
        image.save(file, kind.upper())
    except OSError:
        pytest.skip(f"there is no such {kind}")

    pixels = decode_picture(file.getvalue())

    expected = np.asarray(gray.convert("RGB") if mode == "I;16" else image.convert("RGB"))
    assert np.abs(pixels.astype(int) - expected).mean() < 8


def test_float_picture_is_refused() -> None:
    file = io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(file, "TIFF")

    with pytest.raises(FrameError, match="pixels must be of 8 or 16 bits, got float32"):
        decode_picture(file.getvalue())


def test_orientation_of_a_file_is_followed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = packed("jpeg", exif=exif)

    assert decode_picture(data).shape == (64, 48, 3)
    assert decode_picture(data, follow_orientation=False).shape == (48, 64, 3)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gif"])
@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_picture_that_is_cut_off_is_refused(kind: str, share: float, tmp_path: Path) -> None:
    data = packed(kind, RNG.integers(0, 256, (96, 128, 3), np.uint8))
    path = tmp_path / f"cut{SUFFIXES.get(kind, '.' + kind)}"
    path.write_bytes(data[: round(len(data) * share)])

    with pytest.raises(FrameError, match=r"cut off|damaged"):
        read_clip(open_media(path), 1)


def heic(brand: bytes = b"heic", others: bytes = b"mif1") -> bytes:
    return struct.pack(">I", 20 + len(others)) + b"ftyp" + brand + bytes(4) + b"heic" + others + bytes(64)


@pytest.mark.parametrize("suffix", [".heic", ".HIF", ".jpg", ".mp4"])
@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1"])
def test_heic_is_refused_by_name(suffix: str, brand: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"photo{suffix}"
    path.write_bytes(heic(brand))

    with pytest.raises(FrameError, match="HEIC and HEIF pictures are not read; convert to JPEG"):
        read_clip(open_media(path), 1)
    with pytest.raises(FrameError, match="HEIC and HEIF pictures are not read"):
        VideoFile(path)


def frames(num_frames: int) -> list[Image.Image]:
    return [Image.fromarray(np.full((32, 48, 3), 20 * k, np.uint8)) for k in range(num_frames)]


@pytest.mark.parametrize("kind", [kind for kind in ("gif", "webp", "avif") if kind in KINDS])
def test_animated_picture_has_its_own_times(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"moves.{kind}"
    first, *others = frames(7)
    durations = [100, 100, 2000, 100, 100, 2600, 100]
    first.save(path, save_all=True, append_images=others, duration=durations, lossless=True)

    media = open_media(path)
    clip = read_clip(media, 7)

    assert [frame.stamp_ns // 10**6 for frame in clip] == [0, 100, 200, 2200, 2300, 2400, 5000]
    assert [round(frame.image.mean() / 20) for frame in clip] == list(range(7))
    assert [round(media.read(k).mean() / 20) for k in (5, 1, 6, 0)] == [5, 1, 6, 0]
    assert isinstance(media, VideoFile if kind == "gif" else AnimatedPicture)


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_picture_that_does_not_move_is_shown_once(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"still.{kind}"
    frames(1)[0].save(path)

    assert len(read_clip(open_media(path), 8)) == 1


def test_folder_with_fewer_images_than_places_shows_some_twice(tmp_path: Path) -> None:
    for k, image in enumerate(frames(3)):
        image.save(tmp_path / f"{k}.png")

    clip = read_clip(open_media(tmp_path), 8)

    expected = np.round(np.linspace(0, 2, 8)).astype(int).tolist()  # as the reference chooses
    assert [round(frame.image.mean() / 20) for frame in clip] == expected
    assert isinstance(open_media(tmp_path), ImageFiles)


def chunk(name: bytes, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return struct.pack(">I", size) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(*extra: bytes, width: int = 8, height: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(3 * 8)) * 8)
    return b"".join([b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *extra, chunk(b"IDAT", rows), chunk(b"IEND", b"")])


def tiff(**tags: tuple[int, int, int]) -> bytes:
    """A tiff whose entries may say anything: tag, type and count by value."""
    entries = {256: (3, 1, 8), 257: (3, 1, 8), 258: (3, 1, 8), 259: (3, 1, 8), 262: (3, 1, 1), 277: (3, 1, 1)}
    entries |= {273: (4, 1, 200), 278: (4, 1, 8), 279: (4, 1, 64)}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    packed_entries = [struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items())]
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(packed_entries) + bytes(4)
    return head.ljust(200, b"\0") + zlib.compress(bytes(64)).ljust(64, b"\0")


def webp_canvas(width: int, height: int) -> bytes:
    data = bytearray(packed("webp"))
    body = bytes([0x10, 0, 0, 0]) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    extended = b"VP8X" + struct.pack("<I", 10) + body
    return b"RIFF" + struct.pack("<I", len(data) - 8 + len(extended)) + b"WEBP" + extended + bytes(data[12:])


def bombs() -> Iterator[tuple[str, bytes]]:
    yield "png_text_of_4_gb", png(chunk(b"tEXt", b"a\0b" * 2000, length=0xFFFFFF00))
    yield "png_data_of_2_gb", png(chunk(b"IDAT", b"x" * 7000, length=0x7FFFFFF0))
    yield "png_unpacked_text", png(*[chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 20))) for _ in range(60)])
    yield "png_unpacked_profile", png(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200 << 20), 9)))
    yield "png_animation", png(chunk(b"acTL", struct.pack(">II", 1 << 31, 0)))
    yield "png_large", png(width=60000, height=60000)
    yield "jpeg_large", packed("jpeg").replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 65000, 65000))
    yield "gif_large", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + packed("gif")[13:]
    yield (
        "gif_frame",
        packed("gif").replace(
            b",\0\0\0\0" + struct.pack("<HH", 64, 48), b",\0\0\0\0" + struct.pack("<HH", 65535, 65535)
        ),
    )
    yield "bmp_large", packed("bmp")[:18] + struct.pack("<ii", 60000, 60000) + packed("bmp")[26:]
    yield "bmp_header", packed("bmp")[:14] + struct.pack("<I", 0x7FFFFFF0) + packed("bmp")[18:]
    yield "pnm_large", b"P6 60000 60000 255\n" + bytes(100)
    yield "tiff_large", tiff(t256=(4, 1, 60000), t257=(4, 1, 60000))
    yield "tiff_count", tiff(t270=(2, 0xFFFFFFF0, 8))
    yield "tiff_strips", tiff(t273=(4, 0x0FFFFFFF, 200), t279=(4, 0x0FFFFFFF, 64))
    yield "tiff_strip_bytes", tiff(t279=(4, 1, 0xFFFFFFF0))
    yield "tiff_rows", tiff(t278=(4, 1, 0xFFFFFFF0))
    yield "tiff_tiles", tiff(t322=(4, 1, 40000), t323=(4, 1, 40000), t324=(4, 1, 200), t325=(4, 1, 64))
    yield "webp_canvas", webp_canvas(1 << 24, 1 << 24)
    yield "webp_large", webp_canvas(16383, 16383)
    if "avif" in KINDS:
        yield "avif_large", packed("avif").replace(struct.pack(">II", 64, 48), struct.pack(">II", 60000, 60000))
        yield "avif_box", packed("avif").replace(b"mdat", b"mdat", 1)[:-400]


CHILD = """
import resource, sys
import av, cv2
import numpy as np
from pathlib import Path
from nvila_ros.errors import NvilaError
from nvila_ros.types import EncodedImage
from nvila_ros.video.compressed import decode_compressed, decode_gray, read_header
from nvila_ros.video.media import open_media, read_clip
from nvila_ros.video.pictures import decode_picture

path, whole = Path(sys.argv[1]), Path(sys.argv[2])
try:
    decode_picture(whole.read_bytes()); read_clip(open_media(whole), 2)  # what is loaded once
except NvilaError:
    pass
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), -1))

def attempt(read):
    try:
        return f"read {read().shape}"
    except NvilaError as error:
        return f"refused: {error}"

def as_message():
    data = np.frombuffer(path.read_bytes(), np.uint8)
    header = read_header(data, "")
    image = EncodedImage(data=data, format="", width=header.width, height=header.height)
    decode_gray(image, 16)
    return decode_compressed(image)

print(attempt(as_message))
print(attempt(lambda: read_clip(open_media(path), 2)[0].image))
"""


@pytest.mark.parametrize(("name", "data"), [pytest.param(*each, id=each[0]) for each in bombs()])
def test_small_file_takes_little_memory(name: str, data: bytes, tmp_path: Path) -> None:
    kind = name.split("_")[0]
    path, whole = (
        tmp_path / f"bomb{SUFFIXES.get(kind, '.' + kind)}",
        tmp_path / f"whole{SUFFIXES.get(kind, '.' + kind)}",
    )
    path.write_bytes(data)
    whole.write_bytes(packed(kind))
    assert sniff(data) in (kind, "")

    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(path), str(whole)], capture_output=True, text=True, timeout=100, check=False
    )

    assert child.returncode == 0, child.stderr[-2000:]
    lines = child.stdout.splitlines()
    assert len(lines) == 2
    assert "MemoryError" not in child.stdout
    assert "Unable to allocate" not in child.stdout
    if name.endswith("_large"):
        assert all("refused" in line for line in lines), lines


def test_picture_beyond_the_bound_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    path.write_bytes(png(width=40000, height=40000))

    with pytest.raises(FrameError, match=f"a picture must have 1 to {MAX_PIXELS} px, got 40000x40000 in a png"):
        read_clip(open_media(path), 1)


def test_name_that_is_no_utf8_is_read(tmp_path: Path) -> None:
    folder = bytes(tmp_path)
    for name in (b"a.png", b"\xe9t\xe9.png"):
        with open(folder + b"/" + name, "wb") as file:
            file.write(packed("png"))

    assert len(read_clip(open_media(tmp_path), 2)) == 2


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (Path("/dev/zero"), tmp_path / "pipe.jpg"):
        for read in (read_file, sniff_file):
            with pytest.raises(FrameError, match="cannot be read: it must be a regular file"):
                read(path)
