from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import FrameError
from nvila_ros.types import RawImage
from nvila_ros.video.image_decoding import LAYOUT_BY_ENCODING, check_layout, decode

COLOR_ORDERS = {"rgb": "RGB", "rgba": "RGBA", "bgr": "BGR", "bgra": "BGRA"}
PACKED = {"uyvy": "UYVY", "yuv422": "UYVY", "yuyv": "YUYV", "yuv422_yuy2": "YUYV"}
BAYER = ("rggb", "bggr", "gbrg", "grbg")
CHANNELS = {name + bits: len(order) for name, order in COLOR_ORDERS.items() for bits in ("8", "16")}
CHANNELS |= {"mono8": 1, "mono16": 1}


def pack(rows: np.ndarray, encoding: str, width: int, height: int, padding: int, big: bool = False) -> RawImage:
    """Return rows of bytes, each followed by junk, as an image."""
    junk = np.full((len(rows), padding), 0xA5, np.uint8)
    data = np.concatenate([rows, junk], axis=1)
    return RawImage(
        data=data.reshape(-1),
        encoding=encoding,
        width=width,
        height=height,
        step=data.shape[1],
        is_bigendian=big,
    )


def yuv_to_rgb(y: int, u: int, v: int) -> list[float]:
    """Convert one pixel by BT.601 as video has it: brightness from 16, black, to 235, colour around 128."""
    light, blue, red = 255 / 219 * max(y - 16, 0), u - 128, v - 128
    scale = 255 / 112
    rgb = [
        light + scale * 0.701 * red,
        light - scale * (0.886 * 0.114 / 0.587 * blue + 0.701 * 0.299 / 0.587 * red),
        light + scale * 0.886 * blue,
    ]
    return [min(max(channel, 0), 255) for channel in rgb]


sizes = st.tuples(st.integers(1, 9), st.integers(1, 7))
paddings = st.integers(0, 7)
seeds = st.integers(0, 1 << 20)


@given(st.sampled_from(sorted(CHANNELS)), sizes, paddings, st.booleans(), seeds)
def test_colours_equal_a_loop_over_bytes(
    encoding: str, size: tuple[int, int], padding: int, big: bool, seed: int
) -> None:
    (width, height), channels = size, CHANNELS[encoding]
    depth = 2 if encoding.endswith("16") else 1
    pixels = np.random.default_rng(seed).integers(0, 1 << 8 * depth, (height, width, channels))
    dtype = np.dtype(f"{'>' if big else '<'}u{depth}")
    rows = pixels.astype(dtype).reshape(height, -1).view(np.uint8).reshape(height, -1)
    order = COLOR_ORDERS.get(encoding.rstrip("0123456789"), "M")

    image = decode(pack(rows, encoding, width, height, padding, big))

    assert image.shape == (height, width, 3)
    assert image.dtype == np.uint8
    for y in range(height):
        for x in range(width):
            for c, name in enumerate("RGB"):
                value = pixels[y, x, 0 if order == "M" else order.index(name)]
                assert image[y, x, c] == value >> 8 * (depth - 1)


@given(st.sampled_from(sorted(PACKED)), sizes, paddings, seeds)
def test_packed_yuv_equals_a_loop_over_pixels(encoding: str, size: tuple[int, int], padding: int, seed: int) -> None:
    width, height = 2 * size[0], size[1]
    rows = np.random.default_rng(seed).integers(0, 256, (height, 2 * width), dtype=np.uint8)
    order = PACKED[encoding]

    image = decode(pack(rows, encoding, width, height, padding))

    for y in range(height):
        for x in range(width):
            four = rows[y, x // 2 * 4 : x // 2 * 4 + 4].tolist()
            light = [byte for byte, name in zip(four, order, strict=True) if name == "Y"][x % 2]
            expected = yuv_to_rgb(light, four[order.index("U")], four[order.index("V")])
            np.testing.assert_allclose(image[y, x], expected, atol=2.5)


@given(st.sampled_from(["nv12", "nv21"]), sizes, paddings, seeds)
def test_planar_yuv_equals_a_loop_over_pixels(encoding: str, size: tuple[int, int], padding: int, seed: int) -> None:
    width, height = 2 * size[0], 2 * size[1]
    rows = np.random.default_rng(seed).integers(0, 256, (height * 3 // 2, width), dtype=np.uint8)

    image = decode(pack(rows, encoding, width, height, padding))

    assert image.shape == (height, width, 3)
    for y in range(height):
        for x in range(width):
            u, v = rows[height + y // 2, x // 2 * 2 : x // 2 * 2 + 2].tolist()
            if encoding == "nv21":
                u, v = v, u
            np.testing.assert_allclose(image[y, x], yuv_to_rgb(int(rows[y, x]), u, v), atol=2.5)


@given(
    st.sampled_from(BAYER),
    st.sampled_from(["8", "16"]),
    st.integers(3, 9),
    st.integers(3, 9),
    paddings,
    st.tuples(*[st.integers(0, 255)] * 3),
    st.booleans(),
)
def test_bayer_of_one_colour_is_that_colour(
    pattern: str, bits: str, width: int, height: int, padding: int, color: tuple[int, ...], big: bool
) -> None:
    value_by_name = dict(zip("rgb", color, strict=True))
    mosaic = np.array(
        [[value_by_name[pattern[y % 2 * 2 + x % 2]] for x in range(width)] for y in range(height)], np.uint8
    )
    rows = mosaic
    if bits == "16":
        rows = (mosaic.astype(">u2" if big else "<u2") * 256 + 77).astype(">u2" if big else "<u2").view(np.uint8)

    image = decode(pack(rows, f"bayer_{pattern}{bits}", width, height, padding, big))

    assert (image == color).all()


@pytest.mark.parametrize("pattern", BAYER)
def test_bayer_keeps_the_pixel_it_measured(pattern: str) -> None:
    mosaic = np.random.default_rng(1).integers(0, 256, (8, 10), dtype=np.uint8)

    image = decode(pack(mosaic, f"bayer_{pattern}8", 10, 8, 0))

    for y in range(1, 7):
        for x in range(1, 9):
            assert image[y, x, "rgb".index(pattern[y % 2 * 2 + x % 2])] == mosaic[y, x]


def test_rgb8_without_padding_is_not_copied() -> None:
    raw = pack(np.zeros((2, 6), np.uint8), "rgb8", 2, 2, 0)

    assert np.shares_memory(decode(raw), raw.data)


@pytest.mark.parametrize("encoding", sorted(LAYOUT_BY_ENCODING))
def test_result_is_contiguous_rgb(encoding: str) -> None:
    layout = LAYOUT_BY_ENCODING[encoding]
    rows = np.zeros((4 * layout.rows // 2, 4 * layout.num_channels * layout.channel_bytes), np.uint8)

    image = decode(pack(rows, encoding, 4, 4, 3))

    assert image.shape == (4, 4, 3)
    assert image.flags.c_contiguous


def broken(**changes: object) -> RawImage:
    fields = {"data": np.zeros(24, np.uint8), "encoding": "rgb8", "width": 4, "height": 2, "step": 12}
    return RawImage(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (broken(data=np.zeros(23, np.uint8)), "must have 24 bytes, got 23"),
        (broken(data=np.zeros(25, np.uint8)), "must have 24 bytes, got 25"),
        (broken(width=0), "width and height must be positive, got 0x2"),
        (broken(height=0, data=np.zeros(0, np.uint8)), "width and height must be positive, got 4x0"),
        (broken(step=11), "step must be at least 12 bytes for 4 px of rgb8, got 11"),
        (broken(encoding="32FC1"), "unknown image encoding '32FC1'; known are .*rgb8"),
        (broken(encoding=""), "unknown image encoding ''"),
        (broken(encoding="uyvy", width=3, step=12), "needs an even size, got 3x2"),
        (broken(encoding="nv12", height=3, step=8, data=np.zeros(36, np.uint8)), "needs an even size, got 4x3"),
        (broken(encoding="nv12", step=8, data=np.zeros(16, np.uint8)), "must have 24 bytes, got 16"),
        (broken(encoding="bayer_rggb8"), "needs at least 3x3 px, got 4x2"),
        (broken(width=0xFFFFFFFF, height=0xFFFFFFFF), "step must be at least"),
    ],
)
def test_broken_image_is_refused_with_the_rule(raw: RawImage, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        check_layout(raw)
    with pytest.raises(FrameError, match=message):
        decode(raw)
