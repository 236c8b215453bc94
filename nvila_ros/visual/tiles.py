"""One frame to one tile: a direct stretch to the tower's square, scaled to [-1, 1].

Pillow's bicubic filter with antialiasing is what the checkpoints were trained with; other resizers differ by several
grey levels. Source: transformers' `SiglipImageProcessor` (slow), mean and deviation 0.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

# Pillow before 9.1, which Ubuntu 22.04 has, knows it by the module.
BICUBIC = getattr(Image, "Resampling", Image).BICUBIC
# Value of each grey level, rounded as the reference rounds: fp64 product cast to fp32, then fp32.
_LEVELS = ((np.arange(256) * (1 / 255)).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)


def frame_tile(image: np.ndarray, tile_px: int) -> np.ndarray:
    """Return a (tile_px, tile_px, 3) uint8 RGB tile of the whole (H, W, 3) uint8 RGB image."""
    if image.shape[:2] == (tile_px, tile_px):
        return image
    return np.asarray(Image.fromarray(image).resize((tile_px, tile_px), BICUBIC))


def normalize_tiles(tiles: Sequence[np.ndarray], pixel_dtype: str = "float32") -> np.ndarray:
    """Return (N, 3, tile_px, tile_px) float32 in [-1, 1] of N uint8 RGB tiles, rounded to `pixel_dtype`."""
    levels = _LEVELS.astype(pixel_dtype).astype(np.float32)
    return levels[np.stack(tiles).transpose(0, 3, 1, 2)]
