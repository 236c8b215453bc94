"""Which grid of tiles a single image is cut into, by its size alone.

Source: NVLabs/VILA `mm_utils.py`, `dynamic_preprocess` and `find_closest_aspect_ratio`: aspect is matched before size,
and an exact tie goes to the larger grid only if the image fills more than half of its pixels.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from nvila_ros.preprocess.tiles import frame_tile

MIN_TILES, MAX_TILES = 1, 12


def choose_grid(
    width: int, height: int, tile_px: int, min_tiles: int = MIN_TILES, max_tiles: int = MAX_TILES
) -> tuple[int, int]:
    """Return (columns, rows) of the grid whose aspect is nearest to the image's."""
    grids = [(c, r) for c in range(1, max_tiles + 1) for r in range(1, max_tiles + 1)]
    grids = sorted((g for g in grids if min_tiles <= g[0] * g[1] <= max_tiles), key=lambda g: g[0] * g[1])
    best, best_distance = (1, 1), float("inf")
    for columns, rows in grids:
        distance = abs(width / height - columns / rows)
        is_filled = width * height > 0.5 * tile_px**2 * columns * rows
        if distance < best_distance or (distance == best_distance and is_filled):
            best, best_distance = (columns, rows), distance
    return best


def cut_tiles(image: np.ndarray, tile_px: int) -> list[np.ndarray]:
    """Return the tiles of the stretched image row by row, and behind them, if they are many, the whole as a thumbnail.

    Args:
        image: (H, W, 3) uint8 RGB.
        tile_px: side of a tile.
    """
    columns, rows = choose_grid(image.shape[1], image.shape[0], tile_px)
    if columns * rows == 1:
        return [frame_tile(image, tile_px)]
    stretched = Image.fromarray(image).resize((tile_px * columns, tile_px * rows), Image.Resampling.BICUBIC)
    grid = np.asarray(stretched).reshape(rows, tile_px, columns, tile_px, 3).swapaxes(1, 2)
    return [*grid.reshape(-1, tile_px, tile_px, 3), frame_tile(image, tile_px)]
