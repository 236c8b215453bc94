"""Which grid of tiles a single image is cut into, by its size alone.

Source: NVLabs/VILA `mm_utils.py`, `dynamic_preprocess`, `dynamic_s2_preprocess` and `find_closest_aspect_ratio`: aspect
is matched before size, and an exact tie goes to the larger grid only if the image fills more than half of its pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from nvila_ros.visual.tiles import BICUBIC, frame_tile

Grid = tuple[int, int]
"""Rows and columns of tiles."""


def choose_grid(width: int, height: int, tile_px: int, min_tiles: int, max_tiles: int) -> Grid:
    """Return (rows, columns) of the grid of `min_tiles` to `max_tiles` whose aspect is nearest to the image's."""
    # A set, filled in upstream's order: among grids of one area, which come first in it decides exact ties.
    sides = [range(1, n + 1) for n in range(min_tiles, max_tiles + 1)]
    grids = {(c, r) for side in sides for c in side for r in side if min_tiles <= c * r <= max_tiles}
    best, best_distance = (1, 1), float("inf")
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        distance = abs(width / height - columns / rows)
        is_filled = width * height > 0.5 * tile_px**2 * rows * columns
        if distance < best_distance or (distance == best_distance and is_filled):
            best, best_distance = (rows, columns), distance
    return best


def scale_grids(width: int, height: int, tile_px: int, scales: Sequence[int], max_tiles: int) -> list[Grid]:
    """Return the grid of each scale: squares, and at the last one what is nearest to the image's aspect.

    Args:
        width: of the image, px.
        height: of the image, px.
        tile_px: side of a tile.
        scales: sides in px, ascending multiples of `tile_px`.
        max_tiles: most tiles at the last scale; the fewest are those of its square.
    """
    sides = [scale // tile_px for scale in scales]
    last = choose_grid(width, height, tile_px, sides[-1] ** 2, max_tiles)
    return [*((side, side) for side in sides[:-1]), last]


def cut_tiles(image: np.ndarray, tile_px: int, grid: Grid) -> list[np.ndarray]:
    """Return the tiles of the image stretched over a grid, row by row.

    Args:
        image: (H, W, 3) uint8 RGB.
        tile_px: side of a tile.
        grid: rows and columns.
    """
    rows, columns = grid
    if rows * columns == 1:
        return [frame_tile(image, tile_px)]
    stretched = Image.fromarray(image).resize((tile_px * columns, tile_px * rows), BICUBIC)
    cut = np.asarray(stretched).reshape(rows, tile_px, columns, tile_px, 3).swapaxes(1, 2)
    return list(cut.reshape(-1, tile_px, tile_px, 3))
