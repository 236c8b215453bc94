"""What the tower made of the tiles of images that are cut, so that of a new frame only what changed passes it.

A tile is known by its camera and its pixels, wherever it lies; so what is found is what would be computed. Where a
threshold allows it, a tile may also take what was made of one that lay at the same place and looked nearly the same.
Tiles are compared with those that passed the tower, never with those that took from them, so that nothing drifts.

Shapes: N tiles; of each tile an array of what was made of it, (P, E) features or (G, D) visual tokens.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from nvila_ros.video.thumbnails import SIDE, is_like

TILE_BYTES = 2048
"""About what a tile costs beside what was made of it: its key, and a thumbnail."""


@dataclass(frozen=True, slots=True, eq=False)
class ViewedTile:
    """A tile of a view, and how it is known.

    Attributes:
        pixels: (tile_px, tile_px, 3) uint8 RGB.
        key: its camera and the digest of its pixels.
        place: its camera, its index among the tiles of its view, and their number.
        thumbnail: (32, 32) uint8, or None where near repeats are not searched.
    """

    pixels: np.ndarray
    key: tuple[str, bytes]
    place: tuple[str, int, int]
    thumbnail: np.ndarray | None


@dataclass(frozen=True, slots=True, eq=False)
class _HeldTile:
    made: np.ndarray
    place: tuple[str, int, int]
    thumbnail: np.ndarray | None


class TileCache:
    """What was made of tiles, least recently used out first.

    Args:
        max_bytes: held; 0 keeps none.
        threshold: a tile whose thumbnail differs nowhere by more than this share of full scale from that of an encoded
            one at its place takes what was made of that; 0 never does.

    Attributes:
        num_bytes: held.
        num_encoded: tiles that passed the tower.
        num_found: tiles whose pixels were known.
        num_shared: tiles that took from a near repeat.
    """

    def __init__(self, max_bytes: int, threshold: float) -> None:
        self._max_bytes, self._threshold = max_bytes, threshold
        self._held: OrderedDict[tuple[str, bytes], _HeldTile] = OrderedDict()
        self.num_bytes = self.num_encoded = self.num_found = self.num_shared = 0

    def __len__(self) -> int:
        return len(self._held)

    def view(self, camera: str, tiles: Sequence[np.ndarray]) -> list[ViewedTile]:
        """Return the tiles of a frame, uint8 RGB squares, with how they are known."""
        return [
            ViewedTile(
                pixels,
                (camera, hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()),
                (camera, index, len(tiles)),
                tile_thumbnail(pixels) if self._threshold else None,
            )
            for index, pixels in enumerate(tiles)
        ]

    def find(self, tile: ViewedTile) -> np.ndarray | None:
        """Return what was made of these pixels, or of near ones where that is allowed, and mark it as used."""
        key = tile.key if tile.key in self._held else self._find_like(tile)
        if key is None:
            return None
        self.num_found += key == tile.key
        self.num_shared += key != tile.key
        self._held.move_to_end(key)
        return self._held[key].made

    def put(self, tile: ViewedTile, made: np.ndarray) -> None:
        """Count a tile that passed the tower, and keep what was made of it; more than the bound is not kept."""
        self.num_encoded += 1
        num_bytes = TILE_BYTES + made.nbytes
        if num_bytes > self._max_bytes or tile.key in self._held:
            return
        self._held[tile.key] = _HeldTile(made.copy(), tile.place, tile.thumbnail)  # not the batch that it lies in
        self.num_bytes += num_bytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._held.popitem(last=False)
            self.num_bytes -= TILE_BYTES + oldest.made.nbytes

    def _find_like(self, tile: ViewedTile) -> tuple[str, bytes] | None:
        """Return the key of the tile used last at this place whose thumbnail differs nowhere by more than allowed."""
        if tile.thumbnail is None:
            return None
        for key, held in reversed(self._held.items()):
            if held.place != tile.place or held.thumbnail is None:
                continue
            if is_like(held.thumbnail, tile.thumbnail, self._threshold):
                return key
        return None


def tile_thumbnail(pixels: np.ndarray) -> np.ndarray:
    """Return the averages of a tile's grey levels, (32, 32) uint8."""
    return np.asarray(cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (SIDE, SIDE), interpolation=cv2.INTER_AREA))
