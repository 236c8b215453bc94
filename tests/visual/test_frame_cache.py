"""What is held costs what it says, however many frames share it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.visual.frame_cache import ENTRY_BYTES, EncodedFrame, FrameCache, FrameKey
from nvila_ros.visual.views import View

VIEW = View((), "image")


def key(number: int) -> FrameKey:
    return FrameKey("camera", number, bytes(16), False)


def new_tokens() -> np.ndarray:
    return np.zeros((1, 4, 64), np.float32)


TOKEN_BYTES = new_tokens().nbytes


def test_frames_that_share_tokens_are_charged_for_them_once() -> None:
    cache, shared = FrameCache(1 << 20), new_tokens()

    for number in range(50):
        cache.put(key(number), EncodedFrame(VIEW, shared))

    assert (len(cache), cache.num_bytes) == (50, TOKEN_BYTES + 50 * ENTRY_BYTES)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=60), st.integers(0, 8))
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
