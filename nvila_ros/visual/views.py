"""What the tower is shown of an image or a clip: its tiles, and how they belong together.

Source: NVLabs/VILA `mm_utils.process_images` and `llava_arch.prepare`: only an image that is alone is cut; of several
images, and of a clip, each is one tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.models.spec import ModelSpec
from nvila_ros.visual.tiles import frame_tile
from nvila_ros.visual.tiling import Grid, choose_grid, cut_tiles, scale_grids


@dataclass(frozen=True, slots=True)
class View:
    """Tiles and what becomes of them.

    Attributes:
        tiles: (tile_px, tile_px, 3) uint8 RGB each.
        mode: `image` (each tile an image of its own), `tiled` (tiles of one image, each followed by a text newline),
            `scaled` (tiles of one image at several scales) or `clip` (each tile a frame for the video encoder).
        grids: of the scales of a scaled image, smallest first.
    """

    tiles: tuple[np.ndarray, ...]
    mode: str
    grids: tuple[Grid, ...] = ()


def view_image(spec: ModelSpec, image: np.ndarray) -> View:
    """Return the view of an image that is alone in its prompt, (H, W, 3) uint8 RGB."""
    height, width = image.shape[:2]
    px = spec.vision.image_px
    if spec.image_mode == "dynamic":
        grid = choose_grid(width, height, px, spec.min_tiles, spec.max_tiles)
        tiles = cut_tiles(image, px, grid)
        # The thumbnail comes last, and only where there is more than it to see.
        return View((*tiles, frame_tile(image, px)) if len(tiles) > 1 else tuple(tiles), "tiled")
    if spec.image_mode == "dynamic_s2":
        grids = scale_grids(width, height, px, spec.scales, spec.max_tiles)
        tiles = [tile for grid in grids for tile in cut_tiles(image, px, grid)]
        return View(tuple(tiles), "scaled", tuple(grids))
    return View((frame_tile(image, px),), "image")


def view_images(spec: ModelSpec, images: Sequence[np.ndarray]) -> View:
    """Return the view of images that share a prompt, each as one tile."""
    return View(tuple(frame_tile(image, spec.vision.image_px) for image in images), "image")


def view_clip(spec: ModelSpec, images: Sequence[np.ndarray]) -> View:
    """Return the view of a clip's frames; their number must suit the pooling levels, see `whole_groups`."""
    return View(view_images(spec, images).tiles, "clip")


def clip_length(spec: ModelSpec, num_frames: int, num_cameras: int = 1) -> int:
    """Return how many frames, the newest, go through the video encoder; 0 where each is shown as an image.

    A clip is several frames of one camera, as many as fill whole groups of the pools.
    """
    is_clip = num_frames > 1 and num_cameras == 1 and spec.video_mode == "video"
    return whole_groups(spec, num_frames) if is_clip else 0


def whole_groups(spec: ModelSpec, num_frames: int) -> int:
    """Return how many of `num_frames` the video encoder can pool: the largest multiple of its groups, or 0."""
    return num_frames - num_frames % spec.frames_per_group
