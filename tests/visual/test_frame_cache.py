"""What is held costs what it says, however many frames share it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.visual.frame_cache import ENTRY_BYTES, EncodedFrame, FrameCache, FrameKey
from nvila_ros.visual.views import View
from tests.strategies import lists_of_all_sizes

VIEW = View((), "image")


def key(number: int) -> FrameKey:
    return FrameKey("camera", number, bytes(16), False)


def new_tokens() -> np.ndarray:
    return np.zeros((1, 4, 64), np.float32)


TOKEN_BYTES = new_tokens().nbytes
KEY = FrameKey("left", 7, bytes(16), False)


@pytest.mark.parametrize(
    "change", [{"camera": "right"}, {"stamp_ns": 8}, {"digest": bytes([1] * 16)}, {"is_alone": True}], ids=str
)
def test_frames_that_differ_in_one_thing_are_two_entries(change: dict[str, Any]) -> None:
    cache, other = FrameCache(1 << 20), replace(KEY, **change)
    one, two = (EncodedFrame(VIEW, new_tokens()) for _ in range(2))

    cache.put(KEY, one)
    assert cache.get(other) is None
    cache.put(other, two)

    assert (cache.get(KEY), cache.get(other), len(cache)) == (one, two, 2)


def thumbnail(value: int) -> np.ndarray:
    return np.full((32, 32), value, np.uint8)


@pytest.mark.parametrize(
    ("camera", "is_alone", "value", "is_found"),
    [
        ("left", False, 102, True),
        ("left", False, 98, True),
        ("left", False, 103, False),
        ("left", False, 97, False),
        ("right", False, 100, False),
        ("left", True, 100, False),
    ],
)
def test_near_repeat_is_of_the_same_camera_shown_the_same_way(
    camera: str, is_alone: bool, value: int, is_found: bool
) -> None:
    cache, encoded = FrameCache(1 << 20), EncodedFrame(VIEW, new_tokens(), thumbnail(100))
    cache.put(KEY, encoded)
    key = FrameKey(camera, 8, bytes(16), is_alone)

    assert cache.find_like(key, thumbnail(value), 2 / 255) is (encoded if is_found else None)


def test_near_repeat_takes_the_tokens_of_the_newest_frame_that_is_alike() -> None:
    cache = FrameCache(1 << 20)
    held = {stamp: EncodedFrame(VIEW, new_tokens(), thumbnail(value)) for stamp, value in ((3, 100), (5, 99), (4, 100))}
    for stamp, encoded in held.items():
        cache.put(key(stamp), encoded)
    cache.put(key(9), EncodedFrame(VIEW, new_tokens(), thumbnail(0)))

    assert cache.find_like(key(10), thumbnail(100), 2 / 255) is held[5]


def test_frames_that_share_tokens_are_charged_for_them_once() -> None:
    cache, shared = FrameCache(1 << 20), new_tokens()

    for number in range(50):
        cache.put(key(number), EncodedFrame(VIEW, shared))

    assert (len(cache), cache.num_bytes) == (50, TOKEN_BYTES + 50 * ENTRY_BYTES)


@given(lists_of_all_sizes(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=60), st.integers(0, 8))
def test_bytes_are_those_of_what_is_held_and_bounded(puts: list[tuple[int, int]], num_fit: int) -> None:
    cache = FrameCache(num_fit * (TOKEN_BYTES + ENTRY_BYTES))
    shared = [new_tokens() for _ in range(3)]
    for number, which in puts:
        cache.put(key(number), EncodedFrame(VIEW, shared[which] if which < 3 else new_tokens()))

    held = list(cache._held.values())
    tokens = {id(encoded.visual_BGD): encoded.visual_BGD.nbytes for encoded in held}
    assert cache.num_bytes == sum(tokens.values()) + ENTRY_BYTES * len(held)
    assert cache.num_bytes <= num_fit * (TOKEN_BYTES + ENTRY_BYTES)
    assert len(cache._num_sharing) == len(tokens)
