"""Of a new frame only tiles whose pixels changed pass the tower, and no token differs for it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.request import StopWork
from nvila_ros.runtime.onnxruntime.engine import load
from nvila_ros.types import Frame
from nvila_ros.visual.frame_encoder import FrameEncoder, SilentProgress
from nvila_ros.visual.tile_cache import TILE_BYTES, TileCache
from nvila_ros.visual.views import view_image
from tests.golden_cases import GOLDEN
from tests.strategies import lists_of_all_sizes

NAMES = ("s2", "lite")  # at several scales, and in a grid
BLACK = np.zeros((96, 128, 3), np.uint8)


class CountingEngine:
    """The engine, and how many tiles its tower was given."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.num_tiles = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def vision(self, tile_NCHW: np.ndarray) -> np.ndarray:
        self.num_tiles += len(tile_NCHW)
        return self._engine.vision(tile_NCHW)


@functools.cache
def engine(name: str) -> Any:
    return load(open_checkpoint(GOLDEN / name / "ckpt"), threads=1)


def encode(encoder: FrameEncoder, image: np.ndarray, stamp: int, camera: str = "camera") -> np.ndarray:
    frame = Frame(image=image, stamp_ns=stamp, camera=camera)
    return encoder.encode(frame, SilentProgress(), is_alone=True).visual_BGD


def tile_bytes(name: str, image: np.ndarray) -> list[bytes]:
    return [tile.tobytes() for tile in view_image(engine(name).spec, image).tiles]


def painted(image: np.ndarray, changes: list[tuple[int, int, int]]) -> np.ndarray:
    """Blocks of 8 x 8 pixels in other greys: row, column, grey."""
    image = image.copy()
    for row, column, grey in changes:
        image[8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = grey
    return image


CHANGES = lists_of_all_sizes(
    st.tuples(st.integers(0, 11), st.integers(0, 15), st.sampled_from([1, 99, 255])), max_size=3
)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    frames=st.lists(CHANGES, min_size=2, max_size=4),
    num_fit=st.sampled_from([0, 3, 20, 1000]),
)
def test_only_new_tiles_pass_the_tower_and_tokens_are_the_same_to_the_bit(
    name: str, frames: list[list[tuple[int, int, int]]], num_fit: int
) -> None:
    counting = CountingEngine(engine(name))
    max_bytes = num_fit * (TILE_BYTES + 64 * 64 * 4)
    keeps, forgets = FrameEncoder(counting, max_bytes, 0.0), FrameEncoder(engine(name), 0, 0.0)
    image, seen = BLACK, set[bytes]()
    for stamp, changes in enumerate(frames):
        image = painted(image, changes)
        tiles, before = tile_bytes(name, image), counting.num_tiles

        got = encode(keeps, image, stamp)

        assert np.array_equal(got, encode(forgets, image, stamp))
        assert counting.num_tiles - before >= len(set(tiles) - seen)
        if num_fit == 1000:
            assert counting.num_tiles - before == len(set(tiles) - seen)
        seen |= set(tiles)
        assert keeps.tiles.num_bytes <= max_bytes // 2
        assert keeps.num_bytes <= max_bytes
    assert keeps.tiles.num_encoded == counting.num_tiles
    assert len(forgets.tiles) == forgets.num_bytes == 0


def test_every_tile_is_counted_once() -> None:
    encoder = FrameEncoder(engine("lite"), 1 << 24, 0.0)
    num_tiles = 0
    for stamp, image in enumerate((BLACK, painted(BLACK, [(2, 3, 99)]), painted(BLACK, [(9, 1, 99)]))):
        encode(encoder, image, stamp)
        num_tiles += len(tile_bytes("lite", image))

    tiles = encoder.tiles
    assert tiles.num_encoded + tiles.num_found + tiles.num_shared == num_tiles
    assert 1 < tiles.num_encoded < num_tiles / 2


def test_frame_of_known_tiles_alone_does_not_count_as_encoded() -> None:
    encoder = FrameEncoder(engine("s2"), 1 << 24, 0.0)
    for stamp in range(3):
        encode(encoder, BLACK, stamp)

    assert (encoder.num_encoded, encoder.num_shared) == (1, 2)


def test_tiles_of_another_camera_are_not_taken() -> None:
    counting = CountingEngine(engine("lite"))
    encoder = FrameEncoder(counting, 1 << 24, 0.1)
    for stamp, camera in enumerate(("left", "right", "left", "right")):
        encode(encoder, BLACK, stamp, camera)

    assert counting.num_tiles == 2  # a black one of each


def test_work_that_is_stopped_goes_on_behind_the_tiles_that_it_did() -> None:
    counting = CountingEngine(engine("lite"))
    encoder = FrameEncoder(counting, 1 << 24, 0.0)
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    looks = iter(range(6))

    def check() -> None:
        if next(looks, None) is None:
            raise StopWork

    with pytest.raises(StopWork):
        encoder.encode(Frame(image=image, stamp_ns=0), SilentProgress(check), is_alone=True)
    num_done = counting.num_tiles
    tokens = encode(encoder, image, 0)

    assert 0 < num_done < counting.num_tiles == 13
    assert np.array_equal(tokens, encode(FrameEncoder(engine("lite"), 0, 0.0), image, 0))


def flat(value: int) -> np.ndarray:
    return np.full((32, 32, 3), value, np.uint8)


def test_near_tiles_are_compared_with_those_encoded_so_that_nothing_drifts() -> None:
    cache = TileCache(1 << 20, 4 / 255)
    encoded = []
    for value in range(100, 121):
        (tile,) = cache.view("camera", [flat(value)])
        if cache.find(tile) is None:
            encoded.append(value)
            cache.put(tile, np.full((1, 2), value, np.float32))

    assert encoded == [100, 105, 110, 115, 120]


def test_near_tile_lies_at_the_same_place_of_the_same_camera() -> None:
    cache = TileCache(1 << 20, 4 / 255)
    first, _ = cache.view("left", [flat(100), flat(0)])
    cache.put(first, np.ones((1, 2), np.float32))

    here, there = cache.view("left", [flat(101), flat(101)])
    (fewer,) = cache.view("left", [flat(101)])
    other, _ = cache.view("right", [flat(101), flat(0)])

    assert cache.find(here) is not None
    assert [cache.find(tile) for tile in (there, fewer, other)] == [None, None, None]
    assert (cache.num_found, cache.num_shared) == (0, 1)


def test_no_frame_takes_tokens_of_one_that_shows_old_tiles() -> None:
    counting = CountingEngine(engine("lite"))
    encoder = FrameEncoder(counting, 1 << 24, 4 / 255)
    image = np.random.default_rng(0).integers(50, 150, (96, 128, 3), np.uint8)
    encode(encoder, image, 0)
    mixed = image + np.uint8(3)
    mixed[:24, :32] = 200  # a new tile and thumbnail; the others take those of the first frame
    encode(encoder, mixed, 1)
    assert 13 < counting.num_tiles < 20
    before = counting.num_tiles

    encode(encoder, mixed + np.uint8(3), 2)  # near the frame before, but its tiles are not near those encoded

    assert counting.num_tiles > before
