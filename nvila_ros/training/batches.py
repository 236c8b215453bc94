"""Training batches of the synthetic world, each a pure function of the stage and the step.

Since step k always holds the same samples, a run can stop at any step and go on as if it had not, with any number of
loader processes. A step draws how it is shown: an image as one tile or at all scales of the model, merged at one of
`MERGE_SCALES`; a clip with one of its mix's numbers of frames, averaged by one of its poolings.

Shapes: B samples, F frames or tiles of each, N tiles in all, P patches, G visual tokens of a tile, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic

import numpy as np
from torch.utils.data import Dataset

from nvila_ros.errors import ConfigError
from nvila_ros.models.spec import ModelSpec
from nvila_ros.prompt.chat import MediaTokens
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.chats import Array, Rows, encode_branches, encode_chat, pad_chats
from nvila_ros.training.mix import Mix
from nvila_ros.training.moments import (
    DESCRIBE_SHARE,
    draw_aspect,
    draw_clip,
    draw_event_turns,
    draw_events,
    draw_moment,
    draw_quick_events,
    draw_timed,
    draw_timed_turns,
    draw_turns,
    draw_wide,
    draw_wide_event_turns,
)
from nvila_ros.training.token_labels import token_labels
from nvila_ros.visual.tiles import frame_tile
from nvila_ros.visual.tiling import Grid, cut_tiles, scale_grids
from nvila_ros.world import photography
from nvila_ros.world.events import sample_small_scene
from nvila_ros.world.named_places import Place, name_places
from nvila_ros.world.questions import Question
from nvila_ros.world.relight import relight
from nvila_ros.world.rendering import LEAST_COVER, Render, patch_labels, render
from nvila_ros.world.scale_questions import event_turns
from nvila_ros.world.scene import EVAL_SEED_BASE, Scene, scene_rng
from nvila_ros.world.wide_questions import draw_wide_turns
from nvila_ros.world.wide_scenes import Look, redress

DRAWN_ROWS = 168
"""Height of a frame drawn for training, before the resize to a tile."""
_FEW_ROWS, _FEW_SHARE = 112, 0.6  # most are drawn smaller, which takes a quarter of the time
MERGE_SCALES = (0, 1, -1, -1)
"""Scale to whose map the features of all are resized, drawn from for each batch of scaled images."""
SINGLE_FRAME_KINDS = ("dense", "images", "wide")
"""Kinds of batches of single frames of one tile."""
WIDE_ROWS = (112, 112, 168, 168, 240)
"""Heights of frames of wide scenes, drawn from evenly: small things need more."""
WIDE_RELIT_SHARE = 0.4
WIDE_LEAST_COVER = 0.12
"""A small thing covers less of a patch than others do."""
CHAT_SHARE = 0.15
"""Share of the batches whose questions are asked one after the other."""


@dataclass(frozen=True, slots=True)
class Batch(Generic[Array]):
    """One step's arrays, of numpy or of torch: frames, dense labels of what they show, conversations; any may lack.

    Attributes:
        tile_BFHWC: uint8 RGB tiles: a clip's frames, or an image's tiles scale by scale.
        color_NP: color label of each patch of each frame.
        shape_NP: shape label of each patch of each frame.
        motion_NG: how what lies under each visual token has moved, as in `TokenLabels`.
        event_NG: what happens under each visual token, as there.
        rank_NG: which of two events was first, as there.
        moment_NG: which frame it is, as there; labelled where times are asked for.
        moving_NG: what is on its way, likewise.
        chats: the questions and answers.
        grids: (rows, columns) of tiles at each scale of an image, or none.
        merge_scale: index of the scale to whose map the features of all scales are resized.
        pool: frames of a clip that are averaged into one.
        time_ids: of the time tokens that answers hold, in order; their labels are soft.
    """

    tile_BFHWC: Array
    color_NP: Array | None = None
    shape_NP: Array | None = None
    motion_NG: Array | None = None
    event_NG: Array | None = None
    rank_NG: Array | None = None
    moment_NG: Array | None = None
    moving_NG: Array | None = None
    chats: Rows[Array] | None = None
    grids: tuple[Grid, ...] = ()
    merge_scale: int = -1
    pool: int = 1
    time_ids: tuple[int, ...] = ()


class Batches(Dataset):
    """Map-style data set whose item k is the batch of step k."""

    def __init__(self, mix: Mix, tokenizer: ChatTokenizer, spec: ModelSpec) -> None:
        self.mix, self.tokenizer, self.spec = mix, tokenizer, spec

    def __getitem__(self, step: int) -> Batch[np.ndarray]:
        """Return the batch of one step."""
        mix = self.mix
        kind = mix.kinds[step % len(mix.kinds)]
        num = mix.num_samples if kind in SINGLE_FRAME_KINDS else mix.num_clips
        if kind == "wide-dense":
            num = mix.num_dense
        first = mix.seed_base + step * max(mix.num_samples, mix.num_clips, mix.num_dense)
        rngs = [scene_rng((first + i) % EVAL_SEED_BASE) for i in range(num)]
        draw = {
            "dense": self._dense,
            "images": self._images,
            "scaled": self._scaled,
            "clips": self._clips,
            "events": self._events,
            "quick": self._quick,
            "timed": self._timed,
            "wide": self._wide,
            "wide-dense": self._wide_dense,
            "wide-clips": self._wide_clips,
            "wide-events": self._wide_events,
        }
        return draw[kind](rngs)

    def _dense(self, rngs: list[np.random.Generator]) -> Batch[np.ndarray]:
        return self._film(rngs, [(scene, [t_s]) for scene, t_s in map(draw_moment, rngs)], True)

    def _images(self, rngs: list[np.random.Generator]) -> Batch[np.ndarray]:
        moments = [self._draw_still(rng, draw_aspect(rng)) for rng in rngs]
        film = self._film(rngs, [(scene, [t_s]) for scene, t_s in moments], self.mix.has_patches)
        turns = self._still_turns(rngs, moments)
        return self._with_chats(film, rngs, turns, (self.spec.tokens_per_tile, "\n"), moments)

    def _scaled(self, rngs: list[np.random.Generator]) -> Batch[np.ndarray]:
        spec, tile_px = self.spec, self.spec.vision.image_px
        aspect = draw_aspect(rngs[0])
        merge_scale = MERGE_SCALES[int(rngs[0].integers(len(MERGE_SCALES)))]
        height = spec.scales[-1]
        width = round(aspect * height)
        grids = tuple(scale_grids(width, height, tile_px, spec.scales, spec.max_tiles))
        moments = [self._draw_still(rng, aspect) for rng in rngs]
        tiles = []
        for rng, (scene, t_s) in zip(rngs, moments, strict=True):
            (frame,) = relight(rng, render(scene, t_s, width, height)[None])
            tiles.append(np.stack([tile for grid in grids for tile in cut_tiles(frame, tile_px, grid)]))
        rows, columns = grids[merge_scale]
        film = Batch(tile_BFHWC=np.stack(tiles), grids=grids, merge_scale=merge_scale)
        layout = (rows * columns * spec.tokens_per_tile, "\n")
        return self._with_chats(film, rngs, self._still_turns(rngs, moments), layout, moments)

    def _draw_still(self, rng: np.random.Generator, aspect: float) -> tuple[Scene, float]:
        if self.mix.small_share and rng.random() < self.mix.small_share:
            return sample_small_scene(rng, aspect=aspect), 0.0
        return draw_moment(rng, aspect, self.mix.palette_share, self.mix.least_of_palette)

    def _still_turns(self, rngs: list[np.random.Generator], moments: list[tuple[Scene, float]]) -> list[list[Question]]:
        mix = self.mix
        return [
            draw_turns(rng, *moment, mix.num_turns, mix.relations, mix.more_kinds, mix.num_more)
            for rng, moment in zip(rngs, moments, strict=True)
        ]

    def _clips(self, rngs: list[np.random.Generator]) -> Batch[np.ndarray]:
        num_frames, pool = self._draw_grid(rngs[0])
        scenes = [draw_clip(rng) for rng in rngs]
        turns = [draw_turns(rng, scene, None, self.mix.num_turns) for rng, scene in zip(rngs, scenes, strict=True)]
        return self._film_clips(rngs, scenes, turns, num_frames, pool)

    def _events(self, rngs: list[np.random.Generator]) -> Batch[np.ndarray]:
        num_frames, pool = max(self.mix.clip_grids)
        scenes = [draw_events(rng, num_frames // pool, self.mix.least_objects) for rng in rngs]
        turns = [draw_event_turns(rng, scene) for rng, scene in zip(rngs, scenes, strict=True)]
        return self._film_clips(rngs, scenes, turns, num_frames, pool)

    def _quick(self, rngs: list[np.random.Generator]) -> Batch[np.ndarray]:
        num_frames, pool = self._draw_grid(rngs[0])
        scenes = [draw_quick_events(rng) for rng in rngs]
        turns = [event_turns(rng, scene) for rng, scene in zip(rngs, scenes, strict=True)]
        return self._film_clips(rngs, scenes, turns, num_frames, pool)

    def _timed(self, rngs: list[np.random.Generator]) -> Batch[np.ndarray]:
        num_frames, pool = self._draw_grid(rngs[0])
        scenes = [draw_timed(rng, num_frames) for rng in rngs]
        times = self.tokenizer.time_ids
        turns = [
            draw_timed_turns(rng, scene, num_frames, self.mix.num_turns, len(times))
            for rng, scene in zip(rngs, scenes, strict=True)
        ]
        return replace(self._film_clips(rngs, scenes, turns, num_frames, pool, is_timed=True), time_ids=times)

    def _wide_dense(self, rngs: list[np.random.Generator]) -> Batch[np.ndarray]:
        scenes = [draw_wide(rng, self._look(), self.mix.palette_share) for rng in rngs]
        return self._film_wide(rngs, [(scene, [0.0]) for scene in scenes])

    def _wide(self, rngs: list[np.random.Generator]) -> Batch[np.ndarray]:
        mix, look = self.mix, self._look()
        scenes = [draw_wide(rng, look, mix.palette_share) for rng in rngs]
        turns = [
            draw_wide_turns(rng, scene, 0.0, mix.num_turns, DESCRIBE_SHARE)
            for rng, scene in zip(rngs, scenes, strict=True)
        ]
        film = self._film_wide(rngs, [(scene, [0.0]) for scene in scenes])
        moments = [(scene, 0.0) for scene in scenes]
        return self._with_chats(film, rngs, turns, (self.spec.tokens_per_tile, "\n"), moments)

    def _wide_clips(self, rngs: list[np.random.Generator]) -> Batch[np.ndarray]:
        num_frames, pool = self._draw_grid(rngs[0])
        scenes = [redress(rng, self._look(), draw_clip(rng)) for rng in rngs]
        turns = [
            draw_wide_turns(rng, scene, None, self.mix.num_turns, DESCRIBE_SHARE)
            for rng, scene in zip(rngs, scenes, strict=True)
        ]
        return self._film_clips(rngs, scenes, turns, num_frames, pool)

    def _wide_events(self, rngs: list[np.random.Generator]) -> Batch[np.ndarray]:
        num_frames, pool = max(self.mix.clip_grids)
        scenes = [
            redress(rng, self._look(), draw_events(rng, num_frames // pool, self.mix.least_objects)) for rng in rngs
        ]
        turns = [draw_wide_event_turns(rng, scene) for rng, scene in zip(rngs, scenes, strict=True)]
        return self._film_clips(rngs, scenes, turns, num_frames, pool)

    def _look(self) -> Look:
        if self.mix.look is None:
            raise ConfigError("a mix with wide kinds needs a look")
        return self.mix.look

    def _draw_grid(self, rng: np.random.Generator) -> tuple[int, int]:
        grids = self.mix.clip_grids
        return grids[int(rng.integers(len(grids)))]

    def _film_clips(
        self,
        rngs: list[np.random.Generator],
        scenes: list[Scene],
        turns: list[list[Question]],
        num_frames: int,
        pool: int,
        *,
        is_timed: bool = False,
    ) -> Batch[np.ndarray]:
        clips = [(scene, np.linspace(0, scene.duration_s, num_frames).tolist()) for scene in scenes]
        is_wide = scenes[0].background.is_shared
        film = self._film_wide(rngs, clips) if is_wide else self._film(rngs, clips, self.mix.has_patches)
        film = replace(film, pool=pool)
        if self.mix.has_events:
            grid, side = self.spec.vision.grid, self.spec.token_grid
            labels = [token_labels(scene, times_s, pool, grid, side) for scene, times_s in clips]
            film = replace(
                film,
                motion_NG=np.concatenate([each.motion for each in labels]),
                event_NG=np.concatenate([each.event for each in labels]),
                rank_NG=np.concatenate([each.rank for each in labels]),
            )
            if is_timed:
                film = replace(
                    film,
                    moment_NG=np.concatenate([each.moment for each in labels]),
                    moving_NG=np.concatenate([each.moving for each in labels]),
                )
        return self._with_chats(film, rngs, turns, (self.spec.tokens_per_tile, "\n") * (num_frames // pool))

    def _film(
        self, rngs: list[np.random.Generator], clips: list[tuple[Scene, list[float]]], has_patches: bool
    ) -> Batch[np.ndarray]:
        """Draw every frame of every clip, and what lies under its patches."""
        tile_px = self.spec.vision.image_px
        tiles = [
            relight(rng, film_tiles(scene, times, tile_px, draw_rows(rng)))
            for rng, (scene, times) in zip(rngs, clips, strict=True)
        ]
        return self._with_patches(np.stack(tiles), clips, has_patches)

    def _film_wide(self, rngs: list[np.random.Generator], clips: list[tuple[Scene, list[float]]]) -> Batch[np.ndarray]:
        """As `_film`, by either camera."""
        mix, tile_px = self.mix, self.spec.vision.image_px
        tiles = []
        for rng, (scene, times_s) in zip(rngs, clips, strict=True):
            camera = photography.render if rng.random() < mix.second_camera_share else render
            rows = int(rng.choice(WIDE_ROWS))
            tiles.append(relight(rng, film_tiles(scene, times_s, tile_px, rows, camera), WIDE_RELIT_SHARE))
        return self._with_patches(np.stack(tiles), clips, mix.has_patches, WIDE_LEAST_COVER)

    def _with_patches(
        self,
        tile_BFHWC: np.ndarray,
        clips: list[tuple[Scene, list[float]]],
        has_patches: bool,
        least_cover: float = LEAST_COVER,
    ) -> Batch[np.ndarray]:
        batch = Batch(tile_BFHWC=tile_BFHWC)
        if not has_patches:
            return batch
        grid = self.spec.vision.grid
        labels = [patch_labels(scene, t_s, grid, least_cover) for scene, times_s in clips for t_s in times_s]
        color, shape = (np.stack(maps).reshape(len(labels), -1) for maps in zip(*labels, strict=True))
        return replace(batch, color_NP=color, shape_NP=shape)

    def _with_chats(
        self,
        film: Batch[np.ndarray],
        rngs: list[np.random.Generator],
        turns: list[list[Question]],
        layout: tuple[int | str, ...],
        moments: list[tuple[Scene, float]] | None = None,
    ) -> Batch[np.ndarray]:
        media = MediaTokens(layout)
        if rngs[0].random() < CHAT_SHARE:
            return replace(film, chats=pad_chats([encode_chat(self.tokenizer, media, each) for each in turns]))
        places: list[list[tuple[Place, ...]]] = [[] for _ in turns]
        if moments is not None:
            places = [
                [name_places(scene, turn.text, t_s) for turn in each]
                for (scene, t_s), each in zip(moments, turns, strict=True)
            ]
        pairs = zip(turns, places, strict=True)
        return replace(film, chats=pad_chats([encode_branches(self.tokenizer, media, *pair) for pair in pairs]))


def draw_rows(rng: np.random.Generator) -> int:
    """Draw how many rows a camera has."""
    return _FEW_ROWS if rng.random() < _FEW_SHARE else DRAWN_ROWS


def film_tiles(scene: Scene, times_s: list[float], tile_px: int, rows: int, camera: Render = render) -> np.ndarray:
    """Return frames of a camera of so many rows as tiles, (F, tile_px, tile_px, 3) uint8."""
    width = round(rows * scene.aspect)
    return np.stack([frame_tile(camera(scene, t_s, width, rows), tile_px) for t_s in times_s])
