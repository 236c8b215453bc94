"""Merging of scales against torch's own interpolation and a naive loop."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from nvila_ros.errors import ShapeError
from nvila_ros.visual.pooling import pool_tokens
from nvila_ros.visual.scales import join_tiles, merge_scales, resize_area, split_blocks

sides = st.integers(1, 14)


@given(height=sides, width=sides, new_height=sides, new_width=sides, seed=st.integers(0, 99))
def test_area_resize_is_torchs_area_interpolation_and_to_the_bit_where_it_enlarges(
    height: int, width: int, new_height: int, new_width: int, seed: int
) -> None:
    map_HWE = np.random.default_rng(seed).normal(size=(height, width, 5)).astype(np.float32)

    got = resize_area(map_HWE, new_height, new_width)

    x = torch.from_numpy(map_HWE).permute(2, 0, 1)[None]
    want = functional.interpolate(x, size=(new_height, new_width), mode="area")[0].permute(1, 2, 0).numpy()
    assert got.dtype == np.float32
    assert np.allclose(got, want, atol=1e-6)
    if new_height >= height and new_width >= width:
        assert np.array_equal(got, want)


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), grid=st.integers(1, 3))
def test_tiles_join_to_the_image_that_blocks_are_cut_from(rows: int, columns: int, grid: int) -> None:
    map_HWE = np.arange(rows * grid * columns * grid * 2, dtype=np.float32).reshape(rows * grid, columns * grid, 2)

    blocks = split_blocks(map_HWE, rows, columns)

    first = map_HWE[:grid, :grid].reshape(grid * grid, 2)
    assert np.array_equal(blocks[0], first)
    assert np.array_equal(join_tiles(blocks, rows, columns), map_HWE)


@given(
    rows=st.integers(1, 3), columns=st.integers(1, 3), merge_scale=st.sampled_from([0, 1, -1]), seed=st.integers(0, 9)
)
def test_merged_blocks_hold_every_scale_of_their_place(rows: int, columns: int, merge_scale: int, seed: int) -> None:
    grids = [(1, 1), (2, 2), (rows, columns)]
    num_tiles = sum(r * c for r, c in grids)
    feat_NPE = np.random.default_rng(seed).normal(size=(num_tiles, 4, 3)).astype(np.float32)

    got = merge_scales(feat_NPE, grids, merge_scale)

    height, width = (2 * side for side in grids[merge_scale])
    starts, maps = [0, 1, 5], []
    for (r, c), start in zip(grids, starts, strict=True):
        whole = np.zeros((2 * r, 2 * c, 3), np.float32)
        for i in range(r * c):
            y, x = 2 * (i // c), 2 * (i % c)
            whole[y : y + 2, x : x + 2] = feat_NPE[start + i].reshape(2, 2, 3)
        x = functional.interpolate(torch.from_numpy(whole).permute(2, 0, 1)[None], size=(height, width), mode="area")
        maps.append(x[0].permute(1, 2, 0).numpy())
    merged = np.concatenate(maps, -1)
    want = [merged[2 * r : 2 * r + 2, 2 * c : 2 * c + 2] for r in range(height // 2) for c in range(width // 2)]
    assert np.array_equal(got, np.stack(want).reshape(-1, 4, 9))


def test_shapes_that_do_not_divide_are_refused_with_both_numbers() -> None:
    with pytest.raises(ShapeError, match="2 x 3 tiles must make a map, got 5"):
        join_tiles(np.zeros((5, 4, 2), np.float32), 2, 3)
    with pytest.raises(ShapeError, match="2 x 3 blocks, got 4 x 4"):
        split_blocks(np.zeros((4, 4, 2), np.float32), 2, 3)
    with pytest.raises(ShapeError, match=r"divide by \(2, 1, 1\), got 3 frames of 4 x 4 tokens"):
        pool_tokens(np.zeros((3, 16, 2), np.float32), (2, 1, 1))
    with pytest.raises(ShapeError, match=r"divide by \(1, 1, 3\), got 2 frames of 4 x 4 tokens"):
        pool_tokens(np.zeros((2, 16, 2), np.float32), (1, 1, 3))
