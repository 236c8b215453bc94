"""A clip group by group: frames that the video encoder averages together are averaged once, and kept as their average.

Pooling never crosses a group, so a clip is its groups side by side. Where sampling is anchored (`video.anchoring`) a
group that has passed comes again in every window, and its average takes the place of its frames in the cache: an eighth
of the bytes where eight are averaged.

Shapes: F frames, G visual tokens of a frame, D decoder width, K tokens of a group at all levels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from nvila_ros.models.spec import ModelSpec
from nvila_ros.visual.encode import VisualPrompt, show_levels
from nvila_ros.visual.frame_cache import FrameKey
from nvila_ros.visual.pooling import pool_tokens


def group_key(frames: Sequence[FrameKey]) -> FrameKey:
    """Return the key under which the average of these frames is kept: its digest is over all of theirs."""
    parts = repr([(frame.camera, frame.stamp_ns, frame.digest, frame.is_alone) for frame in frames])
    return FrameKey(
        frames[0].camera, frames[0].stamp_ns, hashlib.blake2b(parts.encode(), digest_size=16).digest(), False
    )


def pool_group(spec: ModelSpec, visual_FGD: np.ndarray) -> np.ndarray:
    """Return the visual tokens of one group of frames, level behind level, (1, K, D)."""
    levels = [pool_tokens(visual_FGD, pool) for pool in spec.video_pools]
    width = visual_FGD.shape[-1]
    return np.concatenate([level.reshape(-1, width) for level in levels])[None]


def show_groups(spec: ModelSpec, groups: Sequence[np.ndarray]) -> VisualPrompt:
    """Return groups, each as of `pool_group`, as the prompt shows the clip: all groups of a level, then the next."""
    levels, start = [], 0
    for frames, rows, columns in spec.video_pools:
        num_shown, num_tokens = spec.frames_per_group // frames, spec.tokens_per_tile // (rows * columns)
        end = start + num_shown * num_tokens
        level = np.concatenate([group[0, start:end] for group in groups])
        levels.append(level.reshape(len(groups) * num_shown, num_tokens, -1))
        start = end
    return show_levels(spec, levels)
