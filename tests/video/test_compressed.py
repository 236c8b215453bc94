"""Compressed pictures become the colours that their camera saw, and no file can harm."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nvila_ros.errors import FrameError
from nvila_ros.types import EncodedImage
from nvila_ros.video.compressed import Format, decode_compressed, decode_gray, read_format, read_header
from nvila_ros.video.image_decoding import decode
from nvila_ros.video.picture_headers import MAX_PIXELS
from tests.video.test_image_decoding import pack

RED, GREEN, BLUE = (200, 30, 40), (20, 180, 60), (30, 60, 220)


def picture(width: int = 48, height: int = 32) -> np.ndarray:
    """Three flat stripes, (height, width, 3) uint8 RGB, that JPEG keeps within a few levels."""
    image = np.zeros((height, width, 3), np.uint8)
    for k, color in enumerate((RED, GREEN, BLUE)):
        image[:, k * width // 3 : (k + 1) * width // 3] = color
    return image


def compress(pixels: np.ndarray, suffix: str) -> np.ndarray:
    """Hand pixels to OpenCV as image_transport does: it takes them for BGR."""
    is_done, data = cv2.imencode(suffix, pixels, [cv2.IMWRITE_JPEG_QUALITY, 98])
    assert is_done
    return np.asarray(data).reshape(-1)


def encoded(data: np.ndarray | bytes, text: str) -> EncodedImage:
    data = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    header = read_header(data, text)
    return EncodedImage(data=data, format=text, width=header.width, height=header.height)


BGR_FORMATS = [
    (".jpg", "jpeg"),
    (".jpg", "jpg"),
    (".jpg", "JPEG"),
    (".png", "png"),
    (".jpg", "rgb8; jpeg compressed bgr8"),
    (".jpg", "bgr8; jpeg compressed bgr8"),
    (".jpg", "bgr8;jpeg compressed bgr8"),
    (".jpg", "yuv422_yuy2; jpeg compressed bgr8"),
    (".jpg", "rgb8; jpeg"),
    (".png", "rgba8; png compressed bgr8"),
    (".jpg", "bayer_rggb8; jpeg compressed bgr8"),
]


@pytest.mark.parametrize(("suffix", "text"), BGR_FORMATS)
def test_file_filled_with_bgr_has_the_colours_that_the_camera_saw(suffix: str, text: str) -> None:
    image = decode_compressed(encoded(compress(picture()[..., ::-1], suffix), text))

    np.testing.assert_allclose(image[:, 4::8].astype(int), picture()[:, 4::8].astype(int), atol=6)
    assert image.flags.c_contiguous


@pytest.mark.parametrize(
    ("suffix", "text"), [(".jpg", "rgb8; jpeg compressed rgb8"), (".png", "bgr8; png compressed rgb8")]
)
def test_file_filled_with_rgb_has_them_too(suffix: str, text: str) -> None:
    image = decode_compressed(encoded(compress(picture(), suffix), text))

    np.testing.assert_allclose(image[:, 4::8].astype(int), picture()[:, 4::8].astype(int), atol=6)


@pytest.mark.parametrize(
    "text", ["mono8; jpeg compressed ", "mono8; jpeg compressed mono8", "bayer_rggb8; jpeg compressed mono8", "jpeg"]
)
def test_mono_is_grey(text: str) -> None:
    gray = np.repeat(np.arange(20, 180, 10, dtype=np.uint8), 16).reshape(16, 16)

    image = decode_compressed(encoded(compress(gray, ".jpg"), text))

    np.testing.assert_allclose(image, np.repeat(gray[..., None], 3, axis=2), atol=4)


@pytest.mark.parametrize(
    ("channels", "text"),
    [(1, "mono16; png compressed "), (3, "rgb16; png compressed bgr16"), (3, "bgra16; png compressed bgr16")],
)
def test_sixteen_bits_become_their_high_byte(channels: int, text: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 1 << 16, (5, 7, channels)).astype(np.uint16)

    image = decode_compressed(encoded(compress(pixels, ".png"), text))

    assert (image == (pixels[..., ::-1] >> 8)).all()


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
@pytest.mark.parametrize("bits", [8, 16])
def test_mosaic_is_interpolated_as_a_raw_one_is(pattern: str, bits: int) -> None:
    mosaic = np.random.default_rng(1).integers(0, 1 << bits, (6, 8)).astype(f"<u{bits // 8}")
    raw = pack(mosaic.view(np.uint8).reshape(6, -1), f"bayer_{pattern}{bits}", 8, 6, 0)

    image = decode_compressed(encoded(compress(mosaic, ".png"), f"bayer_{pattern}{bits}; png compressed "))

    assert (image == decode(raw)).all()


def test_transparency_is_left_out() -> None:
    bgra = np.dstack([picture()[..., ::-1], np.full((32, 48), 3, np.uint8)])

    assert (decode_compressed(encoded(compress(bgra, ".png"), "png")) == picture()).all()


def test_orientation_in_exif_is_not_followed() -> None:
    data = compress(picture()[..., ::-1], ".jpg").tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (48, 32, 3)

    assert decode_compressed(encoded(turned, "jpeg")).shape == (32, 48, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@given(width=st.integers(1, 70), height=st.integers(1, 70), is_gray=st.booleans(), padding=st.integers(0, 3))
def test_header_is_what_the_file_decodes_to(suffix: str, width: int, height: int, is_gray: bool, padding: int) -> None:
    pixels = np.zeros((height, width) if is_gray else (height, width, 3), np.uint8)
    data = np.concatenate([compress(pixels, suffix), np.zeros(padding, np.uint8)])
    text = {".jpg": "jpeg", ".png": "png"}[suffix]

    header = read_header(data, text)

    assert (header.width, header.height, header.num_channels) == (width, height, 1 if is_gray else 3)
    assert decode_compressed(encoded(data, text)).shape == (height, width, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("size", [(1280, 720), (300, 200), (70, 130), (20, 10)])
def test_gray_is_small_but_not_below_what_was_asked(suffix: str, size: tuple[int, int]) -> None:
    image = encoded(compress(picture(*size), suffix), {".jpg": "jpeg", ".png": "png"}[suffix])

    gray = decode_gray(image, 64)

    assert min(gray.shape) >= min(64, *size)
    assert suffix == ".png" or min(gray.shape) < 2 * 64


@pytest.mark.parametrize(
    "text", ["", "; ", "mjpeg", "jpeg compressed bgr8 twice", "rgb8 jpeg", "my camera", "image/png"]
)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tiff", ".webp", ".bmp"])
def test_file_of_a_format_without_pattern_is_read_by_its_bytes(suffix: str, text: str) -> None:
    data = compress(picture()[..., ::-1], suffix)

    assert read_format(text) == Format()
    assert np.abs(decode_compressed(encoded(data, text)).astype(int) - picture()).mean() < 8


def test_tiff_of_image_transport_has_the_colours_that_the_camera_saw() -> None:
    pixels = compress(picture()[..., ::-1], ".tiff")

    assert (decode_compressed(encoded(pixels, "rgb8; tiff compressed bgr8")) == picture()).all()


@pytest.mark.parametrize("text", ["16UC1; compressedDepth", "16UC1; compressedDepth png", "32FC1; compressedDepth rvl"])
def test_depth_is_refused_by_name(text: str) -> None:
    with pytest.raises(FrameError, match="picture in colour or mono, got depth; use another topic") as error:
        read_format(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("text", ["16UC1; png compressed ", "32FC1; png compressed", "8UC2; jpeg compressed 8UC2"])
def test_what_is_no_picture_is_refused_by_name(text: str) -> None:
    with pytest.raises(FrameError, match="must be of a picture in colour or mono"):
        read_format(text)


JPEG, PNG = (compress(picture()[..., ::-1], suffix).tobytes() for suffix in (".jpg", ".png"))
FRAME = JPEG.index(b"\xff\xc0")


def png_of(width: int, height: int) -> bytes:
    """A PNG of few bytes that says to be large, with all checksums right."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(9)))]
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, body in [*chunks, (b"IEND", b"")]:
        parts.append(struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)))
    return b"".join(parts)


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG that says to be large."""
    return JPEG[: FRAME + 5] + struct.pack(">HH", height, width) + JPEG[FRAME + 9 :]


@pytest.mark.parametrize(
    ("data", "text", "message"),
    [
        (b"", "jpeg", "format 'jpeg' must be the file of a picture, such as jpeg or png, got nothing"),
        (b"\0\0\0\1\x67", "h264", "format 'h264' must be the file of a picture, such as jpeg or png, got 00 00 00 01"),
        (JPEG[:FRAME], "jpeg", "cut off within its header"),
        (PNG[:20], "png", "cut off within its header"),
        (JPEG[: len(JPEG) // 2], "jpeg", "cut off: its end marker is missing"),
        (PNG[:-5], "png", "cut off: its end marker is missing"),
        (jpeg_of(65535, 65535), "jpeg", f"must have 1 to {MAX_PIXELS} px, got 65535x65535 in a jpeg"),
        (jpeg_of(0, 32), "jpeg", "got 0x32"),
        (png_of(1 << 20, 1 << 20), "png", f"must have 1 to {MAX_PIXELS} px, got 1048576x1048576 in a png"),
        (JPEG[:2] + b"\xff\xff" * 9999 + JPEG[2:], "jpeg", "among its first 256 segments, got none"),
        (JPEG[:2] + b"\xff\xe0\0\2" * 9999 + JPEG[2:], "jpeg", "among its first 256 segments, got none"),
        (JPEG[:FRAME] + b"\xff\xc3" + JPEG[FRAME + 2 :], "jpeg", "baseline or progressive .* got frame header 0xc3"),
        (JPEG[:FRAME] + b"\xff\xda" + JPEG[FRAME + 2 :], "jpeg", "frame header before its pixels, got ff da"),
        (JPEG[: FRAME + 4] + b"\x0c" + JPEG[FRAME + 5 :], "jpeg", "1, 3 or 4 channels of 8 bits, got 3 of 12"),
        (JPEG[: FRAME + 9] + b"\x02" + JPEG[FRAME + 10 :], "jpeg", "1, 3 or 4 channels of 8 bits, got 2 of 8"),
        (PNG[:12] + b"IHDX" + PNG[16:], "png", "must begin with a header of a known colour type, got b'IHDX'"),
        (PNG[:25] + b"\x05" + PNG[26:], "png", "known colour type, got b'IHDR' of 5"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_broken_file_is_refused_with_the_rule(data: bytes, text: str, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        read_header(np.frombuffer(data, np.uint8), text)


def test_file_that_is_damaged_behind_its_header_is_refused_when_it_is_decoded() -> None:
    at = PNG.index(b"IDAT") + 10
    damaged = PNG[:at] + bytes(8) + PNG[at + 8 :]

    with pytest.raises(FrameError, match=r"png file of \d+ bytes is damaged: the checksum of its b'IDAT' is wrong"):
        decode_compressed(encoded(damaged, "png"))


@pytest.mark.parametrize("at", [0.3, 0.6, 0.9])
def test_jpeg_that_lost_a_part_of_its_pixels_is_refused(at: float) -> None:
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (256, 192), interpolation=cv2.INTER_CUBIC)
    whole = compress(pixels, ".jpg").tobytes()
    begin = whole.index(b"\xff\xda")
    lost = begin + round((len(whole) - begin) * at)
    damaged = [whole[:lost] + b"\xff\xd9", whole[:lost] + whole[lost + 200 :], whole[:lost] + bytes(200) + b"\xff\xd9"]

    assert decode_compressed(encoded(whole, "jpeg")).shape == pixels.shape
    for each in damaged:
        with pytest.raises(FrameError, match="is damaged or cut off within its pixels"):
            decode_compressed(encoded(each, "jpeg"))


@given(
    st.sampled_from([(JPEG, "jpeg"), (PNG, "png"), (JPEG, "bayer_rggb8; jpeg compressed ")]),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
    st.integers(0, 1 << 16),
)
@example((JPEG, "jpeg"), [(FRAME + 5, b"\x16\x00\x16\x00")], 0)
def test_any_damage_gives_a_picture_of_the_size_said_or_an_error(
    source: tuple[bytes, str], damages: list[tuple[int, bytes]], cut: int
) -> None:
    data, text = bytearray(source[0]), source[1]
    for at, values in damages:
        at %= len(data)
        data[at : at + len(values)] = values
    data = data[: len(data) - cut % len(data)] if cut % 3 == 0 else data

    try:
        image = encoded(bytes(data), text)
        pixels = decode_compressed(image)
        decode_gray(image, 16)
    except FrameError:
        return
    assert pixels.shape == (image.height, image.width, 3)
