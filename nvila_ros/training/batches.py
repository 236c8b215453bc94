"""Training batches of the synthetic world, each a pure function of the stage and the step.

Since step k always holds the same samples, a run can stop at any step and go on as if it had not, with any number of
loader processes.

Shapes: B samples, F frames of each, L tokens.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from nvila_ros.models.spec import ModelSpec
from nvila_ros.preprocess.tiles import frame_tile
from nvila_ros.preprocess.tiling import Grid
from nvila_ros.prompt.chat import Media, answer_frame, next_turn, open_chat
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.questions import Question, ask, conversation
from nvila_ros.training.scenes import (
    COLORS,
    DIRECTIONS,
    EVAL_SEED_BASE,
    SHAPES,
    Scene,
    patch_labels,
    render,
    sample_scene,
    scene_rng,
)

COLOR_LABELS, SHAPE_LABELS, MOTION_LABELS = (
    {name: k for k, name in enumerate(names, start=1)} for names in (COLORS, SHAPES, DIRECTIONS)
)
IGNORE = -100  # label of a token without loss
ASPECTS = (1.0, 4 / 3, 16 / 9)
DRAWN_ROWS = 168  # height of the frames drawn for training, before the resize to a tile
CLIP_FRAMES = (2, 4, 6, 8, 8, 8)  # drawn from for each batch
STILL_KINDS = ("color", "shape", "count", "exist", "where")


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's arrays: frames, dense labels of what is to be learned from them, and conversations; any may lack.

    Attributes:
        tile_BFHWC: uint8 RGB tiles: a clip's frames, or an image's tiles scale by scale.
        color_NP: color label of each patch of each frame.
        shape_NP: shape label of each patch of each frame.
        motion_NG: how what lies under each visual token has moved so far: 0 nothing there or a clip's first frame,
            then `DIRECTIONS` in order.
        event_NG: what happens under each visual token, as in `scale_batches.TokenLabels`.
        rank_NG: which of two events was first, as there.
        ids_BL: token ids with placeholders, right-padded with 0.
        labels_BL: the id that should follow each token, `IGNORE` outside answers.
        grids: (rows, columns) of tiles at each scale of an image, or none.
        merge_scale: index of the scale to whose map the features of all scales are resized.
        pool: frames of a clip that are averaged into one.
    """

    tile_BFHWC: np.ndarray
    color_NP: np.ndarray | None = None
    shape_NP: np.ndarray | None = None
    motion_NG: np.ndarray | None = None
    event_NG: np.ndarray | None = None
    rank_NG: np.ndarray | None = None
    ids_BL: np.ndarray | None = None
    labels_BL: np.ndarray | None = None
    grids: tuple[Grid, ...] = ()
    merge_scale: int = -1
    pool: int = 1


@dataclass(frozen=True, slots=True)
class Mix:
    """What a stage's steps hold, cycling through `kinds`: `dense` labels, `images` or `clips`."""

    kinds: tuple[str, ...]
    seed_base: int
    num_samples: int
    num_clips: int = 0
    num_turns: int = 5


class Batches(Dataset):
    """Map-style data set whose item k is the batch of step k."""

    def __init__(self, mix: Mix, tokenizer: ChatTokenizer, spec: ModelSpec) -> None:
        self.mix, self.tokenizer = mix, tokenizer
        self.tile_px, self.grid = spec.vision.image_px, spec.vision.grid
        self.tokens_per_tile = spec.tokens_per_tile

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of one step."""
        kind = self.mix.kinds[step % len(self.mix.kinds)]
        num = self.mix.num_clips if kind == "clips" else self.mix.num_samples
        first = self.mix.seed_base + step * max(self.mix.num_samples, self.mix.num_clips)
        rngs = [scene_rng((first + i) % EVAL_SEED_BASE) for i in range(num)]
        return {"dense": self._dense, "images": self._images, "clips": self._clips}[kind](rngs)

    def _dense(self, rngs: list[np.random.Generator]) -> Batch:
        return self._film([(scene, [t_s]) for scene, t_s in map(draw_moment, rngs)])

    def _images(self, rngs: list[np.random.Generator]) -> Batch:
        moments = [draw_moment(rng) for rng in rngs]
        turns = [draw_turns(rng, *moment, self.mix.num_turns) for rng, moment in zip(rngs, moments, strict=True)]
        film = self._film([(scene, [t_s]) for scene, t_s in moments])
        return self._with_chats(film, turns, 1)

    def _clips(self, rngs: list[np.random.Generator]) -> Batch:
        num_frames = int(rngs[0].choice(CLIP_FRAMES))
        scenes = [draw_clip(rng) for rng in rngs]
        turns = [draw_turns(rng, scene, None, self.mix.num_turns) for rng, scene in zip(rngs, scenes, strict=True)]
        film = self._film([(scene, np.linspace(0, scene.duration_s, num_frames).tolist()) for scene in scenes])
        return self._with_chats(film, turns, num_frames)

    def _film(self, clips: list[tuple[Scene, list[float]]]) -> Batch:
        """Draw every frame of every clip, with what lies under its patches."""
        tiles = [self._tiles(scene, times_s) for scene, times_s in clips]
        labels = [patch_labels(scene, t_s, self.grid) for scene, times_s in clips for t_s in times_s]
        color, shape = (np.stack(maps) for maps in zip(*labels, strict=True))  # (N, grid, grid)
        scenes = [scene for scene, times_s in clips for _ in times_s]
        motion_BFG = np.stack(
            [token_motion(scene, *maps, self.tokens_per_tile) for scene, maps in zip(scenes, labels, strict=True)]
        ).reshape(len(clips), -1, self.tokens_per_tile)
        motion_BFG[:, 0] = 0  # in a first frame nothing has moved yet
        return Batch(
            tile_BFHWC=np.stack(tiles),
            color_NP=color.reshape(len(color), -1),
            shape_NP=shape.reshape(len(shape), -1),
            motion_NG=motion_BFG.reshape(-1, self.tokens_per_tile),
        )

    def _with_chats(self, film: Batch, turns: list[list[Question]], num_frames: int) -> Batch:
        media = Media((self.tokens_per_tile, "\n") * num_frames)
        ids_BL, labels_BL = pad_chats([encode_chat(self.tokenizer, media, t) for t in turns])
        return dataclasses.replace(film, ids_BL=ids_BL, labels_BL=labels_BL)

    def _tiles(self, scene: Scene, times_s: list[float]) -> np.ndarray:
        width = round(DRAWN_ROWS * scene.aspect)
        return np.stack([frame_tile(render(scene, t, width, DRAWN_ROWS), self.tile_px) for t in times_s])


def token_motion(scene: Scene, color: np.ndarray, shape: np.ndarray, num_tokens: int) -> np.ndarray:
    """Return the motion label under each visual token, (num_tokens,) int64, of a frame's patch labels."""
    motion = np.zeros_like(color)
    for obj in scene.objects:
        is_here = (color == COLOR_LABELS[obj.color]) & (shape == SHAPE_LABELS[obj.shape])
        motion[is_here] = MOTION_LABELS[obj.direction]
    side = round(num_tokens**0.5)
    block = len(motion) // side
    return motion.reshape(side, block, side, block).max(axis=(1, 3)).ravel()


def encode_chat(tokenizer: ChatTokenizer, media: Media, turns: list[Question]) -> tuple[list[int], list[int]]:
    """Return the ids of a conversation and, shifted by one, the labels of its answers."""
    ids: list[int] = []
    is_answer: list[bool] = []
    for i, turn in enumerate(turns):
        asked = next_turn(tokenizer, [turn.text]) if i else open_chat(tokenizer, [media, turn.text])
        asked = asked + answer_frame(tokenizer)
        told = [*tokenizer.encode(turn.answer), tokenizer.im_end]
        ids += asked + told
        is_answer += [False] * len(asked) + [True] * len(told)
    labels = [token if counts else IGNORE for token, counts in zip(ids, is_answer, strict=True)]
    return ids[:-1], labels[1:]


def pad_chats(chats: list[tuple[list[int], list[int]]]) -> tuple[np.ndarray, np.ndarray]:
    """Pad conversations on the right, where causal attention never looks back from."""
    longest = max(len(ids) for ids, _ in chats)
    ids_BL = np.zeros((len(chats), longest), np.int64)
    labels_BL = np.full((len(chats), longest), IGNORE, np.int64)
    for row, (ids, labels) in enumerate(chats):
        ids_BL[row, : len(ids)] = ids
        labels_BL[row, : len(labels)] = labels
    return ids_BL, labels_BL


def draw_moment(rng: np.random.Generator, aspect: float | None = None) -> tuple[Scene, float]:
    """Draw a scene, of any of `ASPECTS` if none is given, and a time (s) within it."""
    duration_s = float(rng.uniform(1.0, 4.0))
    aspect = float(rng.choice(ASPECTS)) if aspect is None else aspect
    scene = sample_scene(rng, aspect=aspect, duration_s=duration_s, is_moving=None)
    return scene, float(rng.uniform(0, duration_s))


def draw_clip(rng: np.random.Generator) -> Scene:
    """Draw a scene and cut a window of half to all of it, which becomes the scene."""
    duration_s = float(rng.uniform(1.0, 4.0))
    is_moving = bool(rng.random() < 0.85)
    scene = sample_scene(rng, aspect=float(rng.choice(ASPECTS)), duration_s=duration_s, is_moving=is_moving)
    length_s = duration_s * float(rng.uniform(0.5, 1.0))
    start_s = float(rng.uniform(0, duration_s - length_s))
    moved = []
    for obj in scene.objects:
        x, y = obj.position(start_s)
        moved.append(dataclasses.replace(obj, x=x, y=y))
    return dataclasses.replace(scene, objects=tuple(moved), duration_s=length_s)


def draw_turns(rng: np.random.Generator, scene: Scene, t_s: float | None, num_turns: int) -> list[Question]:
    """Draw num_turns questions about one frame, or of a clip if t_s is None, and a description where there is one."""
    if t_s is None:  # motion is what a clip is there for: half of its turns ask about it
        turns = conversation(rng, scene, num_turns // 2, ("motion",))
        turns += conversation(rng, scene, num_turns - len(turns), STILL_KINDS)
        turns = [turns[i] for i in rng.permutation(len(turns))]
    else:
        turns = conversation(rng, scene, num_turns, STILL_KINDS, t_s=t_s)
    told = ask(rng, scene, "describe", t_s=t_s)
    if told is None:
        return turns
    # A description first teaches all parts at once; a question first is what users ask.
    return [told, *turns] if rng.random() < 0.5 else [*turns, told]
