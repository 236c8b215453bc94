"""From a view to its part of the prompt, in steps, so that a caller may inspect what lies between.

    tiles -> [tower] -> features -> projector input -> [projector] -> visual tokens -> prompt parts

Source: NVLabs/VILA `encode_images` and the encoders.

Shapes: N tiles, P patches of a tile, E vision width, S scales, B blocks that the projector reads, G visual tokens of a
block, D decoder width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.models.spec import ModelSpec
from nvila_ros.prompt.chat import MediaTokens, PromptPart
from nvila_ros.visual.pooling import pool_tokens
from nvila_ros.visual.scales import join_tiles, merge_scales
from nvila_ros.visual.views import View


@dataclass(frozen=True, slots=True)
class VisualPrompt:
    """How a prompt shows frames.

    Attributes:
        visual_GD: all visual tokens in prompt order, without the text around them.
        parts: how the prompt shows them.
        shown: indices of the frames that are shown, of those that were chosen from.
    """

    visual_GD: np.ndarray
    parts: tuple[PromptPart, ...]
    shown: tuple[int, ...] = ()


def merge_features(spec: ModelSpec, view: View, feat_NPE: np.ndarray) -> np.ndarray:
    """Return what the projector reads, (B, P, S * E): blocks of a scaled image, else tiles.

    A tile that was not shown at several scales stands for all of them: its features are repeated along channels.
    """
    if view.mode == "scaled":
        return merge_scales(feat_NPE, view.grids, spec.merge_scale)
    return np.tile(feat_NPE, max(len(spec.scales), 1))


def arrange(spec: ModelSpec, view: View, visual_BGD: np.ndarray) -> VisualPrompt:
    """Return the projector's output as the prompt shows it."""
    if view.mode == "clip":
        return show_levels(spec, [pool_tokens(visual_BGD, pool) for pool in spec.video_pools])
    if view.mode == "scaled":
        # In raster order over the whole image, not block by block.
        image_HWD = join_tiles(visual_BGD, *view.grids[spec.merge_scale])
        visual_BGD = image_HWD.reshape(1, -1, image_HWD.shape[-1])
    newline = ("\n",) if view.mode == "tiled" or spec.has_text_newlines else ()
    shown = MediaTokens(_layout(spec.image_wrap.start, visual_BGD.shape[1], spec.image_wrap.end))
    return VisualPrompt(visual_BGD.reshape(-1, visual_BGD.shape[-1]), (shown, *newline) * len(visual_BGD))


def show_levels(spec: ModelSpec, levels: Sequence[np.ndarray]) -> VisualPrompt:
    """Return a clip, pooled at each level to (frames, tokens, D), as the prompt shows it."""
    wrap = spec.video_wrap
    layout: tuple[int | str, ...] = ()
    for level in levels:
        layout += _layout(wrap.start, level.shape[1], wrap.end) * len(level) + _layout(wrap.sep)
    visual_GD = np.concatenate([level.reshape(-1, level.shape[-1]) for level in levels])
    return VisualPrompt(visual_GD, (MediaTokens(layout),))


def _layout(*runs: int | str) -> tuple[int | str, ...]:
    return tuple(run for run in runs if run)
