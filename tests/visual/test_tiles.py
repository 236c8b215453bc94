"""Tiles against the image processor, grids against the reference's own tables."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nvila_ros.visual.tiles import frame_tile, normalize_tiles
from nvila_ros.visual.tiling import choose_grid, cut_tiles, scale_grids
from tests.golden_cases import GOLDEN


def test_normalised_levels_are_the_image_processors() -> None:
    tile = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)

    got = normalize_tiles([tile])

    scaled = (tile * (1 / 255)).astype(np.float32)
    want = ((scaled - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1)[None]
    assert got.dtype == np.float32
    assert np.array_equal(got, want)
    assert np.array_equal(normalize_tiles([tile], "float16"), want.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(("file", "tile_px"), [("tiling.json", 112), ("tiling_448.json", 448)])
def test_grids_are_the_references_for_99_sizes(file: str, tile_px: int) -> None:
    cases = json.loads((GOLDEN / file).read_text())
    scales = (tile_px, 2 * tile_px, 3 * tile_px)

    for case in cases:
        rows, columns = choose_grid(case["w"], case["h"], tile_px, 1, 12)
        grids = scale_grids(case["w"], case["h"], tile_px, scales, 12)
        assert [columns, rows] == case["dynamic_cols_rows"], case
        assert rows * columns + (rows * columns > 1) == case["dynamic_tiles"], case
        assert list(grids[-1]) == case["s2_block_rows_cols"], case
        assert sum(r * c for r, c in grids) == case["s2_tiles"], case
    assert len(cases) == 99


@settings(max_examples=60, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_tiles_are_the_stretched_image_cut_row_by_row(width: int, height: int, rows: int, columns: int) -> None:
    image = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), np.uint8)
    px = 28

    tiles = cut_tiles(image, px, (rows, columns))

    stretched = Image.fromarray(image).resize((px * columns, px * rows), Image.Resampling.BICUBIC)
    boxes = [(c * px, r * px, (c + 1) * px, (r + 1) * px) for r in range(rows) for c in range(columns)]
    want = [np.asarray(stretched.crop(box)) for box in boxes]
    assert len(tiles) == len(want)
    assert all(np.array_equal(a, b) for a, b in zip(tiles, want, strict=True))


def test_frame_of_the_tiles_size_is_left_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)

    assert np.array_equal(frame_tile(image, 28), image)
