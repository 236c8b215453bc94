"""Training batches for scale-then-compress, each a pure function of the stage and the step.

A step draws how it is shown: an image as one tile or at all scales, merged at one of `MERGE_SCALES`, a clip with one of
`CLIP_GRIDS`, so that one checkpoint learns to answer over all of them.

Shapes: B samples, F frames or tiles of each, K objects, G visual tokens of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from nvila_ros.models.spec import ModelSpec
from nvila_ros.preprocess.tiles import frame_tile
from nvila_ros.preprocess.tiling import cut_tiles, scale_grids
from nvila_ros.prompt.chat import Media
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.batches import (
    ASPECTS,
    DRAWN_ROWS,
    IGNORE,
    MOTION_LABELS,
    STILL_KINDS,
    Batch,
    Mix,
    draw_clip,
    draw_moment,
    draw_turns,
    encode_chat,
    pad_chats,
)
from nvila_ros.training.events import QUICK_GAPS, QUICK_JUMPS, sample_event_scene, sample_small_scene
from nvila_ros.training.questions import Question, conversation
from nvila_ros.training.scale_questions import EVAL_CLIP_S, event_turns
from nvila_ros.training.scenes import EVAL_SEED_BASE, Scene, patch_owners, render, scene_rng

CLIP_GRIDS = (
    *((4, 1), (8, 1)) * 2,
    *((8, 2), (16, 1), (16, 2), (32, 8)),
    *((16, 4),) * 3,
    *((32, 4),) * 4,
)
"""Frames of a clip and how many of them are averaged, drawn from for each batch."""
MERGE_SCALES = (0, 1, -1, -1)
"""Scale to whose map the features of all are resized, drawn from for each batch of scaled images."""
SMALL_SHARE = 0.6  # of the images show small things
QUICK_SHARE = 0.5  # of the events are as quick as those of the suite
SLOW_GAPS, SLOW_JUMPS = (0.1, 0.4), (0.14, 0.3)

NUM_EVENTS = 6
"""Classes of what happens under a visual token: nothing there; there all along; appears, having been there for up to
1, 2, 3, 4 quarters of its group of frames."""
THERE = 1
"""Last of the classes without a change."""


class ScaleBatches(Dataset):
    """Map-style data set whose item k is the batch of step k; kinds are images, scaled, clips and events."""

    def __init__(self, mix: Mix, tokenizer: ChatTokenizer, spec: ModelSpec) -> None:
        self.mix, self.tokenizer, self.spec = mix, tokenizer, spec

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of one step."""
        kind = self.mix.kinds[step % len(self.mix.kinds)]
        num = self.mix.num_samples if kind == "images" else self.mix.num_clips
        first = self.mix.seed_base + step * max(self.mix.num_samples, self.mix.num_clips)
        rngs = [scene_rng((first + i) % EVAL_SEED_BASE) for i in range(num)]
        draw = {"images": self._images, "scaled": self._scaled, "clips": self._clips, "events": self._events}
        return draw[kind](rngs)

    def _images(self, rngs: list[np.random.Generator]) -> Batch:
        tiles, turns = [], []
        for rng in rngs:
            scene, t_s = _draw_still(rng, float(rng.choice(ASPECTS)))
            tiles.append(_film(scene, [t_s], self.spec.vision.image_px))
            turns.append(self._still_turns(rng, scene, t_s))
        return self._batch(tiles, turns, (self.spec.tokens_per_tile, "\n"))

    def _scaled(self, rngs: list[np.random.Generator]) -> Batch:
        spec, tile_px = self.spec, self.spec.vision.image_px
        aspect = float(rngs[0].choice(ASPECTS))
        height = spec.scales[-1]
        width = round(aspect * height)
        grids = tuple(scale_grids(width, height, tile_px, spec.scales, spec.max_tiles))
        tiles, turns = [], []
        for rng in rngs:
            scene, t_s = _draw_still(rng, aspect)
            frame = render(scene, t_s, width, height)
            tiles.append(np.stack([tile for grid in grids for tile in cut_tiles(frame, tile_px, grid)]))
            turns.append(self._still_turns(rng, scene, t_s))
        merge_scale = MERGE_SCALES[int(rngs[0].integers(len(MERGE_SCALES)))]
        rows, columns = grids[merge_scale]
        batch = self._batch(tiles, turns, (rows * columns * spec.tokens_per_tile, "\n"))
        return replace(batch, grids=grids, merge_scale=merge_scale)

    def _still_turns(self, rng: np.random.Generator, scene: Scene, t_s: float) -> list[Question]:
        return conversation(rng, scene, self.mix.num_turns, STILL_KINDS, t_s=t_s)

    def _clips(self, rngs: list[np.random.Generator]) -> Batch:
        scenes = [draw_clip(rng) for rng in rngs]
        turns = [draw_turns(rng, scene, None, self.mix.num_turns) for rng, scene in zip(rngs, scenes, strict=True)]
        return self._film_clips(rngs[0], scenes, turns)

    def _events(self, rngs: list[np.random.Generator]) -> Batch:
        scenes = [_draw_events(rng) for rng in rngs]
        turns = [event_turns(rng, scene) for rng, scene in zip(rngs, scenes, strict=True)]
        return self._film_clips(rngs[0], scenes, turns)

    def _film_clips(self, rng: np.random.Generator, scenes: list[Scene], turns: list[list[Question]]) -> Batch:
        num_frames, pool = CLIP_GRIDS[int(rng.integers(len(CLIP_GRIDS)))]
        times_s = [np.linspace(0, scene.duration_s, num_frames).tolist() for scene in scenes]
        vision, side = self.spec.vision, self.spec.token_grid
        tiles = [_film(scene, times, vision.image_px) for scene, times in zip(scenes, times_s, strict=True)]
        labels = [
            token_labels(scene, times, pool, vision.grid, side) for scene, times in zip(scenes, times_s, strict=True)
        ]
        batch = self._batch(tiles, turns, (self.spec.tokens_per_tile, "\n") * (num_frames // pool))
        return replace(
            batch,
            pool=pool,
            motion_NG=np.concatenate([each.motion for each in labels]),
            event_NG=np.concatenate([each.event for each in labels]),
            rank_NG=np.concatenate([each.rank for each in labels]),
        )

    def _batch(self, tiles: list[np.ndarray], turns: list[list[Question]], layout: tuple[int | str, ...]) -> Batch:
        chats = [encode_chat(self.tokenizer, Media(layout), each) for each in turns]
        ids_BL, labels_BL = pad_chats(chats)
        return Batch(tile_BFHWC=np.stack(tiles), ids_BL=ids_BL, labels_BL=labels_BL)


@dataclass(frozen=True, slots=True)
class TokenLabels:
    """What happened so far under each visual token of a pooled clip, as far as its frames tell; (groups, G) int64 each.

    Attributes:
        motion: 0 where nothing is and in the first group, else 1 + the index in `DIRECTIONS` of how the object has
            moved or jumped up to and with this group.
        event: one of `NUM_EVENTS` classes.
        rank: 0 under the first of two that both have appeared, 1 under the second, else `IGNORE`.
    """

    motion: np.ndarray
    event: np.ndarray
    rank: np.ndarray


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
    motion, event = np.zeros((2, len(times_s) // pool, side * side), np.int64)
    for obj, cover_FG, is_seen in zip(scene.objects, cover_KFG, is_seen_KF, strict=True):
        is_off = np.array([obj.jump is not None and obj.jump.share(t) > 0.5 for t in times_s])
        for group in range(len(motion)):
            start, end = group * pool, (group + 1) * pool
            lies_G = cover_FG[start:end].any(axis=0)
            if group:
                moved = obj.jump_direction if is_off[:end].any() else obj.direction
                motion[group, lies_G] = MOTION_LABELS[moved]
            share = is_seen[start:end].mean()
            event[group, lies_G] = THERE if is_seen[max(start - 1, 0)] else THERE + int(np.ceil(4 * share))
    return TokenLabels(motion, event, _rank_labels(cover_KFG, is_seen_KF, pool))


def _rank_labels(cover_KFG: np.ndarray, is_seen_KF: np.ndarray, pool: int) -> np.ndarray:
    rank = np.full((cover_KFG.shape[1] // pool, cover_KFG.shape[2]), IGNORE, np.int64)
    pair = [k for k, is_seen in enumerate(is_seen_KF) if not is_seen.all()]
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


def _film(scene: Scene, times_s: list[float], tile_px: int) -> np.ndarray:
    """Frames of a camera as tiles, (F, tile_px, tile_px, 3) uint8."""
    width = round(DRAWN_ROWS * scene.aspect)
    return np.stack([frame_tile(render(scene, t_s, width, DRAWN_ROWS), tile_px) for t_s in times_s])


def _draw_still(rng: np.random.Generator, aspect: float) -> tuple[Scene, float]:
    if rng.random() < SMALL_SHARE:
        return sample_small_scene(rng, aspect=aspect), 0.0
    return draw_moment(rng, aspect)


def _draw_events(rng: np.random.Generator) -> Scene:
    is_quick = bool(rng.random() < QUICK_SHARE)
    gaps, jumps = (QUICK_GAPS, QUICK_JUMPS) if is_quick else (SLOW_GAPS, SLOW_JUMPS)
    aspect = float(rng.choice(ASPECTS))
    return sample_event_scene(rng, aspect=aspect, duration_s=EVAL_CLIP_S, gaps=gaps, jumps=jumps)
