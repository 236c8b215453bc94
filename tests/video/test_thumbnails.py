"""Thumbnails are what the whole frame would be made small, and digests stand for pixels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.types import EncodedImage, Frame, RawFrame, RawImage
from nvila_ros.video import thumbnails
from nvila_ros.video.compressed import decode_compressed
from nvila_ros.video.image_decoding import LAYOUT_BY_ENCODING, decode
from nvila_ros.video.thumbnails import KEPT_FROM_BYTES, SIDE, thumbnail
from nvila_ros.world.events import sample_event_scene
from nvila_ros.world.rendering import render

SCENE = sample_event_scene(np.random.default_rng(5), aspect=16 / 9, duration_s=1.0)
WIDTH, HEIGHT = 320, 180


def raw_of(encoding: str, padding: int = 0, big: bool = False) -> RawFrame:
    """The scene in any encoding of the table."""
    layout, rgb = LAYOUT_BY_ENCODING[encoding], render(SCENE, 0.5, WIDTH, HEIGHT)
    rows = _rows(encoding, rgb).reshape(HEIGHT * layout.rows // 2, -1)
    if layout.channel_bytes == 2:
        rows = (rows.astype(np.uint16) << 8).astype(">u2" if big else "<u2").view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    image = RawImage(
        data=rows.reshape(-1), encoding=encoding, width=WIDTH, height=HEIGHT, step=rows.shape[1], is_bigendian=big
    )
    return RawFrame(image=image, stamp_ns=1)


def _rows(encoding: str, rgb: np.ndarray) -> np.ndarray:
    if encoding.startswith("bayer"):
        mosaic = np.empty((HEIGHT, WIDTH), np.uint8)
        for k, name in enumerate(encoding[6:10]):
            mosaic[k // 2 :: 2, k % 2 :: 2] = rgb[k // 2 :: 2, k % 2 :: 2, "rgb".index(name)]
        return mosaic
    y_byte = thumbnails._Y_BYTES.get(LAYOUT_BY_ENCODING[encoding].code)
    if y_byte is not None:
        y = (16 + cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) * (219 / 255)).round().astype(np.uint8)
        if encoding.startswith("nv"):
            return np.concatenate([y, np.full((HEIGHT // 2, WIDTH), 128, np.uint8)])
        return np.insert(np.full((HEIGHT, WIDTH, 1), 128, np.uint8), y_byte, y, axis=2)
    if encoding.startswith("mono"):
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    colors = rgb[..., ::-1] if encoding.startswith("bgr") else rgb
    return np.dstack([colors, colors[..., :1]]) if "a" in encoding else colors


def slow_thumbnail(rgb: np.ndarray) -> np.ndarray:
    return cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(float)


@pytest.mark.parametrize("encoding", sorted(LAYOUT_BY_ENCODING))
@pytest.mark.parametrize("big", [False, True])
def test_raw_thumbnail_is_that_of_the_decoded_frame_made_small(encoding: str, big: bool) -> None:
    frame = raw_of(encoding, padding=7, big=big)

    small = thumbnail(frame).astype(float)

    expected = slow_thumbnail(decode(frame.image))  # type: ignore[arg-type]
    if LAYOUT_BY_ENCODING[encoding].code in thumbnails._Y_BYTES:
        expected = 16 + expected * (219 / 255)
    # A Bayer block's mean weighs green by half and not by 0.587: colours differ in grey, edges lie where they lay.
    most = 16 if encoding.startswith("bayer") else 3
    assert np.abs(small - expected).mean() < most
    assert np.corrcoef(small.ravel(), expected.ravel())[0, 1] > 0.9


def test_all_pixels_of_a_bayer_block_count() -> None:
    mosaic = np.tile(np.array([[0, 40], [80, 200]], np.uint8), (50, 60))
    image = RawImage(data=mosaic.reshape(-1), encoding="bayer_rggb8", width=120, height=100, step=120)

    assert (thumbnail(RawFrame(image=image, stamp_ns=1)) == 80).all()


@pytest.mark.parametrize(("suffix", "text"), [(".jpg", "jpeg"), (".png", "png")])
@pytest.mark.parametrize("size", [(1280, 720), (320, 180), (40, 30)])
def test_compressed_thumbnail_is_that_of_the_decoded_frame_made_small(
    suffix: str, text: str, size: tuple[int, int]
) -> None:
    data = np.asarray(cv2.imencode(suffix, render(SCENE, 0.5, *size)[..., ::-1])[1]).reshape(-1)
    image = EncodedImage(data=data, format=text, width=size[0], height=size[1])

    small = thumbnail(RawFrame(image=image, stamp_ns=1))

    assert (small.shape, small.dtype) == ((SIDE, SIDE), np.uint8)
    assert np.abs(small - slow_thumbnail(decode_compressed(image))).mean() < 2


@given(st.sampled_from(sorted(LAYOUT_BY_ENCODING)), st.integers(3, 9), st.integers(3, 9), st.integers(0, 255))
def test_small_flat_image_of_any_layout_has_a_flat_thumbnail(
    encoding: str, width: int, height: int, value: int
) -> None:
    layout = LAYOUT_BY_ENCODING[encoding]
    width, height = width * 2, height * 2
    step = width * layout.num_channels * layout.channel_bytes
    data = np.full(step * height * layout.rows // 2, value, np.uint8)
    image = RawImage(data=data, encoding=encoding, width=width, height=height, step=step)

    small = thumbnail(RawFrame(image=image, stamp_ns=1))

    assert (small.shape, small.dtype) == ((SIDE, SIDE), np.uint8)
    assert (small == value).all()


def test_thumbnail_is_made_once_and_not_kept_beside_a_frame_that_weighs_less_than_sixteen() -> None:
    large = raw_of("rgb8")
    data = np.zeros(KEPT_FROM_BYTES - 1, np.uint8)
    small = RawFrame(
        image=RawImage(data=data, encoding="mono8", width=KEPT_FROM_BYTES - 1, height=1, step=KEPT_FROM_BYTES - 1),
        stamp_ns=1,
    )

    assert thumbnail(large) is thumbnail(large)
    assert thumbnail(small) is not thumbnail(small)
    assert large.memo.thumbnail is not None
    assert large.memo.thumbnail.nbytes * 16 <= KEPT_FROM_BYTES


CHANGES: list[Callable[[RawImage], RawImage]] = [
    lambda image: dataclasses.replace(image, data=image.data ^ np.eye(1, image.data.size, 3, dtype=np.uint8)[0]),
    lambda image: dataclasses.replace(image, encoding="bgr8"),
    lambda image: dataclasses.replace(image, width=image.height, height=image.width, step=image.height * 3),
    lambda image: dataclasses.replace(image, is_bigendian=True),
]


@pytest.mark.parametrize("change", CHANGES)
def test_digest_tells_pixels_and_layouts_apart(change: Callable[[RawImage], RawImage]) -> None:
    frame = raw_of("rgb8")
    assert isinstance(frame.image, RawImage)

    assert RawFrame(image=change(frame.image), stamp_ns=1).digest != frame.digest


def test_digest_is_of_the_picture_alone() -> None:
    frame = raw_of("rgb8")
    again = raw_of("rgb8")

    assert dataclasses.replace(again, stamp_ns=9, camera="rear", frame_id="x").digest == frame.digest
    assert len(frame.digest) == 16
    assert frame.digest is frame.digest


def test_digest_of_an_encoded_frame_is_of_its_file_and_format() -> None:
    data = np.arange(50, dtype=np.uint8)
    frames = [
        RawFrame(image=EncodedImage(data=data + k, format=text, width=4, height=4), stamp_ns=1)
        for k in (0, 1)
        for text in ("jpeg", "rgb8; jpeg compressed rgb8")
    ]

    assert len({frame.digest for frame in frames}) == 4


def test_digest_of_rgb_is_the_same_however_the_pixels_lie_in_memory() -> None:
    image = render(SCENE, 0.5, 16, 8)
    other = image.copy()
    other[3, 3, 1] ^= 1

    digest = Frame(image=image, stamp_ns=1).digest
    assert Frame(image=np.asfortranarray(image), stamp_ns=2, camera="rear").digest == digest
    assert Frame(image=other, stamp_ns=1).digest != digest
    assert Frame(image=image.reshape(16, 8, 3), stamp_ns=1).digest != digest
