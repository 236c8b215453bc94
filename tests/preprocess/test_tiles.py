"""Tiles against the image processor, grids against the reference's own table."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nvila_ros.preprocess.tiles import frame_tile, normalize_tiles
from nvila_ros.preprocess.tiling import MAX_TILES, choose_grid, cut_tiles
from tests.golden_cases import GOLDEN


def test_normalised_levels_are_the_image_processors() -> None:
    tile = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)

    got = normalize_tiles([tile])

    scaled = (tile * (1 / 255)).astype(np.float32)
    want = ((scaled - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1)[None]
    assert got.dtype == np.float32
    assert np.array_equal(got, want)


@pytest.mark.parametrize(("file", "tile_px"), [("tiling.json", 112), ("tiling_448.json", 448)])
def test_grids_are_the_references_for_99_sizes(file: str, tile_px: int) -> None:
    cases = json.loads((GOLDEN / file).read_text())

    wrong = [c for c in cases if list(choose_grid(c["w"], c["h"], tile_px)) != c["dynamic_cols_rows"]]

    assert len(cases) == 99
    assert not wrong


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_tiles_are_the_stretched_image_cut_row_by_row_and_a_thumbnail(width: int, height: int) -> None:
    image = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    px = 28
    columns, rows = choose_grid(width, height, px)

    tiles = cut_tiles(image, px)

    assert columns * rows <= MAX_TILES
    stretched = Image.fromarray(image).resize((px * columns, px * rows), Image.Resampling.BICUBIC)
    boxes = [(c * px, r * px, (c + 1) * px, (r + 1) * px) for r in range(rows) for c in range(columns)]
    want = [np.asarray(stretched.crop(box)) for box in boxes]
    if len(want) > 1:
        want.append(frame_tile(image, px))
    assert len(tiles) == len(want)
    assert all(np.array_equal(a, b) for a, b in zip(tiles, want, strict=True))
