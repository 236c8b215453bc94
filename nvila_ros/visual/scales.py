"""Merge the features of one image at several sizes into one map with the channels of all.

Source: NVLabs/VILA `merge_features_for_dynamic_s2` and `split_chessboard`. Upstream resizes with
`interpolate(mode="area")`, which is adaptive average pooling in both directions; where it enlarges, `resize_area` gives
the same bits.

Shapes: N tiles, P patches of a tile, E vision width, H W patches of a whole map, S scales.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nvila_ros.errors import ShapeError


def merge_scales(feat_NPE: np.ndarray, grids: Sequence[tuple[int, int]], merge_scale: int) -> np.ndarray:
    """Return the blocks that the projector reads, (rows * columns of the merged grid, P, S * E) float32.

    Args:
        feat_NPE: the tower's features of the tiles of all scales, smallest scale first, tiles row by row.
        grids: (rows, columns) of tiles at each scale.
        merge_scale: index of the scale whose grid the maps of all are resized to.
    """
    maps, start = [], 0
    for rows, columns in grids:
        maps.append(join_tiles(feat_NPE[start : start + rows * columns], rows, columns))
        start += rows * columns
    height, width = maps[merge_scale].shape[:2]
    merged_HWE = np.concatenate([resize_area(each, height, width) for each in maps], axis=-1)
    return split_blocks(merged_HWE, *grids[merge_scale])


def join_tiles(feat_NPE: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return the map (rows * grid, columns * grid, E) of square tiles that lie row by row.

    Raises:
        ShapeError: there are more or fewer tiles.
    """
    num_tiles, num_patches, width = feat_NPE.shape
    grid = round(num_patches**0.5)
    if num_tiles != rows * columns:
        raise ShapeError(f"{rows} x {columns} tiles must make a map, got {num_tiles}; cut the picture by these grids")
    tiled = feat_NPE.reshape(rows, columns, grid, grid, width)
    return tiled.swapaxes(1, 2).reshape(rows * grid, columns * grid, width)


def split_blocks(map_HWE: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return the map cut into blocks row by row, (rows * columns, patches of a block, E).

    Raises:
        ShapeError: its sides do not divide.
    """
    height, width, channels = map_HWE.shape
    if height % rows or width % columns:
        raise ShapeError(
            f"patches must divide into {rows} x {columns} blocks, got {height} x {width}; cut by these grids"
        )
    cut = map_HWE.reshape(rows, height // rows, columns, width // columns, channels).swapaxes(1, 2)
    return cut.reshape(rows * columns, -1, channels)


def resize_area(map_HWE: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the map resized by adaptive averages, (height, width, E): 2 to 3 mixes neighbours, 1 to 3 repeats.

    Cell i of n averages the source's rows from floor(i * m / n) up to ceil((i + 1) * m / n), columns alike.
    """
    if map_HWE.shape[:2] == (height, width):
        return map_HWE
    tops, num_rows = _windows(map_HWE.shape[0], height)
    lefts, num_columns = _windows(map_HWE.shape[1], width)
    total_HWE = np.zeros((height, width, map_HWE.shape[2]), map_HWE.dtype)
    # Row by row of the windows, as upstream's loop adds; a window that ends early adds nothing.
    for dy in range(num_rows.max()):
        for dx in range(num_columns.max()):
            is_inside_HW = (dy < num_rows)[:, None] & (dx < num_columns)
            rows, columns = np.minimum(tops + dy, len(map_HWE) - 1), np.minimum(lefts + dx, map_HWE.shape[1] - 1)
            total_HWE += np.where(is_inside_HW[..., None], map_HWE[np.ix_(rows, columns)], 0)
    return total_HWE / num_rows[:, None, None].astype(map_HWE.dtype) / num_columns[:, None].astype(map_HWE.dtype)


def _windows(num_in: int, num_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first source index and the length of every window."""
    index = np.arange(num_out)
    first, end = index * num_in // num_out, -(-(index + 1) * num_in // num_out)
    return first, end - first
