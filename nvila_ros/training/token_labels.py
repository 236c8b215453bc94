"""Dense labels of a clip: what happened so far under each of its visual tokens.

Asked about alone, motion and order stay at chance for thousands of clips; labelled under each token, they are learned
in hundreds.

Shapes: F frames, K objects, G visual tokens of a tile.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nvila_ros.world.rendering import patch_owners
from nvila_ros.world.scene import DIRECTIONS, Scene

IGNORE = -100
"""Label of a token without loss."""
MOTION_LABELS = {name: k for k, name in enumerate(DIRECTIONS, start=1)}
NUM_EVENTS = 7
"""Classes of what happens under a visual token: nothing there; there all along; appears, having been there for up to
1, 2, 3, 4 quarters of its group of frames; gone, having been there before."""
THERE = 1
"""Last of the classes without a change."""
GONE = NUM_EVENTS - 1
NUM_MOMENTS = 32
"""Groups of frames that are told apart by their number."""


@dataclass(frozen=True, slots=True)
class TokenLabels:
    """What happened so far under each visual token of a pooled clip, as far as its frames show; (groups, G) int64 each.

    Attributes:
        motion: 0 where nothing is and in the first group, else 1 + the index in `DIRECTIONS` of how the object has
            moved or jumped up to and with this group.
        event: one of `NUM_EVENTS` classes.
        rank: 0 under the first of two that both have appeared, 1 under the second, else `IGNORE`.
        moment: the group's number, the last of `NUM_MOMENTS` for all behind.
        moving: 1 under what is on its way amid the group, else 0.
    """

    motion: np.ndarray
    event: np.ndarray
    rank: np.ndarray
    moment: np.ndarray
    moving: np.ndarray


def token_labels(scene: Scene, times_s: list[float], pool: int, grid: int, side: int) -> TokenLabels:
    """Label the visual tokens of a clip.

    Args:
        scene: what was filmed.
        times_s: of the frames.
        pool: frames averaged into one.
        grid: patches along a side of a tile.
        side: visual tokens along a side of a tile.
    """
    cover_KFG = _cover(scene, times_s, grid, side)
    is_seen_KF = np.array([[obj.is_visible(t) for t in times_s] for obj in scene.objects])
    motion, event, moving = np.zeros((3, len(times_s) // pool, side * side), np.int64)
    moment = np.minimum(np.arange(len(motion)), NUM_MOMENTS - 1)[:, None].repeat(side * side, axis=1)
    for obj, cover_FG, is_seen in zip(scene.objects, cover_KFG, is_seen_KF, strict=True):
        is_off = np.array([obj.jump is not None and obj.jump.share(t) > 0.5 for t in times_s])
        for group in range(len(motion)):
            start, end = group * pool, (group + 1) * pool
            lies_G = cover_FG[start:end].any(axis=0)
            if group:
                moved = obj.jump_direction if is_off[:end].any() else obj.direction
                motion[group, lies_G] = MOTION_LABELS[moved]
            is_moving = obj.jump is not None and obj.jump.is_under_way(times_s[start], times_s[end - 1])
            moving[group, lies_G & is_moving] = 1
            share = is_seen[start:end].mean()
            event[group, lies_G] = THERE if is_seen[max(start - 1, 0)] else THERE + int(np.ceil(4 * share))
            if is_seen[:start].any() and not share:
                event[group, cover_FG[:start].any(axis=0) & (event[group] == 0)] = GONE
    pair = [k for k, obj in enumerate(scene.objects) if math.isfinite(obj.appears_s)]
    return TokenLabels(motion, event, _rank_labels(cover_KFG, is_seen_KF, pair, pool), moment, moving)


def _rank_labels(cover_KFG: np.ndarray, is_seen_KF: np.ndarray, pair: list[int], pool: int) -> np.ndarray:
    rank = np.full((cover_KFG.shape[1] // pool, cover_KFG.shape[2]), IGNORE, np.int64)
    if len(pair) != 2:
        return rank
    starts = {k: int(is_seen_KF[k].argmax()) for k in pair}  # frame that shows it first
    if starts[pair[0]] == starts[pair[1]]:
        return rank  # no frame lies between
    decided = max(starts.values()) // pool
    for place, k in enumerate(sorted(pair, key=starts.__getitem__)):
        rank[decided:, cover_KFG[k].any(axis=0)] = place
    return rank


def _cover(scene: Scene, times_s: list[float], grid: int, side: int) -> np.ndarray:
    """Whether each object covers a patch of each visual token, (K, F, side * side) bool."""
    owners = np.stack([patch_owners(scene, t_s, grid) for t_s in times_s])
    blocks = owners.reshape(len(times_s), side, grid // side, side, grid // side)
    covers = [(blocks == k).any(axis=(2, 4)) for k in range(1, len(scene.objects) + 1)]
    return np.stack(covers).reshape(len(covers), len(times_s), side * side)
