from __future__ import annotations

import cv2
import numpy as np
import pytest

from nvila_ros.config import NodeConfig
from nvila_ros.errors import QueryError
from nvila_ros.serving.admission import check_query
from nvila_ros.serving.request_images import MAX_IMAGES, decode_images
from nvila_ros.types import EncodedImage, Frame, Query, RawFrame
from nvila_ros.video.compressed import decode_compressed
from nvila_ros.video.picture_headers import MAX_PIXELS

CONFIG = NodeConfig(cameras=("front",), max_images_bytes=100_000)
RNG = np.random.default_rng(3)


def content(width: int = 16, height: int = 8, suffix: str = ".jpg") -> bytes:
    pixels = RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(suffix, pixels)[1].tobytes()


def picture(data: bytes | None = None, stamp_ns: int = 7, text: str = "") -> RawFrame:
    """A picture as a request brings it: its header is not read yet."""
    data = content() if data is None else data
    image = EncodedImage(data=np.frombuffer(data, np.uint8), format=text, width=0, height=0)
    return RawFrame(image=image, stamp_ns=stamp_ns, camera="images")


def query(*images: RawFrame, **fields: object) -> Query:
    values = {"query_id": "a", "question": "what is it", "num_frames": 0, "sampling": "", "images": images} | fields
    return Query(**values)  # type: ignore[arg-type]


def decode(frame: RawFrame) -> Frame:
    assert isinstance(frame.image, EncodedImage)
    return Frame(image=decode_compressed(frame.image), stamp_ns=frame.stamp_ns, camera=frame.camera)


def huge(width: int, height: int) -> bytes:
    """A JPEG whose header says so; a decoder would run out of pixels."""
    data = bytearray(content())
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(data)


def test_pictures_are_admitted_in_any_number_up_to_the_bound() -> None:
    check_query(query(picture()), CONFIG)
    check_query(query(*(picture(stamp_ns=k // 2) for k in range(MAX_IMAGES))), CONFIG)
    check_query(query(picture(content(suffix=".png"), text="png")), CONFIG)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"start_ns": 1, "end_ns": 2}, "start, end"),
        ({"ago_start_s": 2.0, "ago_end_s": 1.0}, "ago_start_s, ago_end_s"),
        ({"window_s": 1.0}, "window_s"),
        ({"num_frames": 1}, "num_frames"),
        ({"sampling": "uniform"}, "sampling"),
        ({"cameras": ("front",)}, "cameras"),
    ],
)
def test_pictures_go_with_no_field_about_the_cameras_frames(fields: dict[str, object], named: str) -> None:
    with pytest.raises(QueryError, match=f"so leave {named} out, or the images"):
        check_query(query(picture(), **fields), CONFIG)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([picture()] * (MAX_IMAGES + 1), "images must be at most 64, got 65"),
        (
            [picture(b"\xff" * 60_000), picture(b"\xff" * 40_001)],
            "max_images_bytes = 100000 bytes together, got 100001",
        ),
        ([picture(), picture(b"")], r"images\[1\]: data of format '' must be the file of a picture"),
        ([picture(), picture(b"no picture")], r"images\[1\]: .* got 6e 6f 20 70"),
        ([picture(content()[:-40])], r"images\[0\]: jpeg file of \d+ bytes is cut off"),
        ([picture(content(suffix=".png")[:20])], r"images\[0\]: png file of 20 bytes is cut off"),
        ([picture(huge(8000, 8000))], rf"images\[0\]: a picture must have 1 to {MAX_PIXELS} px, got 8000x8000"),
        ([picture(huge(5000, 5000))] * 3, r"images must have at most 67108864 px together, got 75000000"),
        ([picture(text="16UC1; compressedDepth png")], r"images\[0\]: format .* got depth"),
        (
            [picture(stamp_ns=5), picture(stamp_ns=4)],
            r"oldest first, got stamps 5 and 4 ns of images\[0\] and images\[1",
        ),
    ],
)
def test_a_picture_that_breaks_a_rule_has_the_question_refused(images: list[RawFrame], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        check_query(query(*images), CONFIG)


def test_pictures_are_decoded_in_their_order() -> None:
    contents = [content(width=8 + k) for k in range(3)]

    frames = decode_images([picture(data, stamp_ns=k) for k, data in enumerate(contents)], decode)

    assert [frame.image.shape[1] for frame in frames] == [8, 9, 10]
    assert [(frame.stamp_ns, frame.camera) for frame in frames] == [(k, "images") for k in range(3)]


def test_damage_within_the_pixels_is_refused_and_never_left_out() -> None:
    whole = content(width=320, height=240)
    damaged = bytearray(whole)
    damaged[len(whole) // 2 : len(whole) // 2 + 64] = bytes(64)
    images = [picture(whole), picture(bytes(damaged))]
    check_query(query(*images), NodeConfig())

    with pytest.raises(QueryError, match=r"images\[1\]: jpeg file of \d+ bytes is damaged"):
        decode_images(images, decode)
