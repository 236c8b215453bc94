"""Samples of the synthetic world, drawn and encoded once, with what the large model's tower sees of each.

All ways of choosing and all trainings read the same samples, and drawing one costs more than learning from it. The
tower is frozen and shared by all models, so its features stand for the frames; they are kept in float16, whose steps
are finer than those of the bfloat16 that checkpoints have. A set is drawn in shards by any number of processes.

Shapes: N samples, L tokens of the longest, H W pixels, P patches of a tile, E vision width.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path

import numpy as np
import torch

from nvila_ros.files import atomic_file
from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.suites import DEFAULT_SUITE, HEIGHT, SUITES, WIDTH
from nvila_ros.training.conversations.encoding import EncodedSample, encode_sample
from nvila_ros.training.conversations.planted import PLANTS, PlantedWorld
from nvila_ros.training.conversations.record_media import IMAGE
from nvila_ros.training.conversations.samples import Sample, SampleTurn
from nvila_ros.training.pruning import content_key
from nvila_ros.training.token_labels import IGNORE
from nvila_ros.visual.tiles import normalize_tiles
from nvila_ros.world.questions import EvalCase

SHARD = 500  # samples; of 19 MB
TILES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class CaseMedium:
    """The frame that an evaluation case asks about."""

    case: EvalCase
    name: str
    kind: str = IMAGE

    def read(self, num_frames: int) -> list[np.ndarray]:
        """Return it, (HEIGHT, WIDTH, 3) uint8 RGB, as `nvila eval` films it."""
        render = SUITES[DEFAULT_SUITE].render
        return [render(self.case.scene, self.case.times_s[0], WIDTH, HEIGHT)]


@dataclass(frozen=True, slots=True)
class Cases:
    """The first cases of `nvila eval`'s kinds as samples, kind behind kind; each kind asks of one frame."""

    kinds: tuple[str, ...]
    num_each: int
    name: str = "cases"

    def __len__(self) -> int:
        return len(self.kinds) * self.num_each

    def case(self, index: int) -> EvalCase:
        """Return a case."""
        return SUITES[DEFAULT_SUITE].case(self.kinds[index // self.num_each], index % self.num_each)

    def read(self, index: int) -> Sample:
        """Return it with its true answer, which is compared with and never shown."""
        case = self.case(index)
        turn = SampleTurn((CaseMedium(case, f"case {index}"),), case.question.text, case.question.answer)
        return Sample(f"case {index}", (turn,), self.name)

    def marks(self, index: int) -> tuple[int, int, int]:
        """Return what stands for a case, and twice the number of its kind."""
        return index, index // self.num_each, index // self.num_each


@dataclass(frozen=True, slots=True)
class Planted:
    """The samples of a planted world; each is of one plant and of one sub-dataset."""

    world: PlantedWorld

    def __len__(self) -> int:
        return len(self.world)

    def read(self, index: int) -> Sample:
        """Return a sample."""
        return self.world.read(index)

    def marks(self, index: int) -> tuple[int, int, int]:
        """Return the key by which `nvila prune` orders samples of equal score, and the numbers of plant and kind.

        The kind is 0 for all where the world is one sub-dataset.
        """
        line = self.world.line(index)
        record, kinds = json.loads(line), self.world.plan.kinds
        return content_key(line), PLANTS.index(record["plant"]), kinds.index(record.get("kind", kinds[0]))


@dataclass(frozen=True, slots=True)
class DrawnSet:
    """A set of samples in arrays.

    Attributes:
        ids: (N, L) int16, as in `EncodedSample`, zeros behind each sample.
        labels: (N, L) int16, as there, `IGNORE` behind each sample.
        lengths: (N,) int32, tokens of each sample.
        keys: (N,) int64, stands for its content.
        groups: (N,) int8, its plant, or the kind of question of a case.
        subsets: (N,) int8, its sub-dataset.
        features: (N, P, E) float16, what the tower sees.
    """

    ids: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    keys: np.ndarray
    groups: np.ndarray
    subsets: np.ndarray
    features: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def num_learned(self) -> np.ndarray:
        """Learned tokens of each sample, (N,) int64."""
        return (self.labels != IGNORE).sum(1)


@cache
def _open_large(name: str) -> tuple[Checkpoint, ChatTokenizer]:
    checkpoint = open_checkpoint(find_checkpoint(name))
    return checkpoint, ChatTokenizer.from_folder(checkpoint.tokenizer_folder)


def shards_of(source: Planted | Cases) -> list[tuple[int, int]]:
    """Return the first and the end of each shard of a source."""
    return [(first, min(first + SHARD, len(source))) for first in range(0, len(source), SHARD)]


def draw_shard(source: Planted | Cases, first: int, end: int, folder: Path, large: str) -> None:
    """Draw and encode samples `first` to `end` into a file, unless the shard or the whole set is there.

    Args:
        source: of the samples.
        first: number of the first.
        end: number behind the last.
        folder: of the set.
        large: the checkpoint that all models take after, by path or name; it shows a frame as one tile.

    Raises:
        NvilaError: a sample is too long for the model, or the file cannot be written.
    """
    path = _shard_path(folder, first)
    if path.is_file() or is_drawn(folder):
        return
    checkpoint, tokenizer = _open_large(large)
    samples = [encode_sample(checkpoint.spec, tokenizer, source.read(i)) for i in range(first, end)]
    keys, groups, subsets = zip(*(source.marks(i) for i in range(first, end)), strict=True)
    arrays = {
        **_pad(samples),
        "keys": np.array(keys, np.int64),
        "groups": np.array(groups, np.int8),
        "subsets": np.array(subsets, np.int8),
        "tiles": np.stack([tile for sample in samples for view in sample.views for tile in view.tiles]),
    }
    assert len(arrays["tiles"]) == len(samples), "each frame is one tile"
    with atomic_file(path) as part, part.open("wb") as file:
        np.savez(file, **arrays)


def _shard_path(folder: Path, first: int) -> Path:
    return folder.with_name(f"{folder.name}.shards") / f"{first:08d}.npz"


def _pad(samples: Sequence[EncodedSample]) -> dict[str, np.ndarray]:
    lengths = np.array([len(sample.ids_L) for sample in samples], np.int32)
    ids = np.zeros((len(samples), lengths.max()), np.int16)
    labels = np.full_like(ids, IGNORE)
    for row, sample in enumerate(samples):
        ids[row, : lengths[row]], labels[row, : lengths[row]] = sample.ids_L, sample.labels_L
    return {"ids": ids, "labels": labels, "lengths": lengths}


def is_drawn(folder: Path) -> bool:
    """Whether a set is there as a whole."""
    return folder.is_dir()


def finish(source: Planted | Cases, folder: Path, tower: Nvila) -> None:
    """Make a set of all its shards, unless it is there, and remove them.

    Args:
        source: what was drawn; every shard of it is there.
        folder: of the set.
        tower: a model with the tower that all share, on the device that shall work.
    """
    if is_drawn(folder):
        return
    part = folder.with_name(f".part-{folder.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    shards = [_open_shard(_shard_path(folder, first), tower) for first, _ in shards_of(source)]
    width = max(shard["ids"].shape[1] for shard in shards)
    for shard in shards:
        short = ((0, 0), (0, width - shard["ids"].shape[1]))
        shard["ids"] = np.pad(shard["ids"], short)
        shard["labels"] = np.pad(shard["labels"], short, constant_values=IGNORE)
    for name in shards[0]:
        np.save(part / f"{name}.npy", np.concatenate([shard[name] for shard in shards]))
    part.rename(folder)
    shutil.rmtree(_shard_path(folder, 0).parent)


def _open_shard(path: Path, tower: Nvila) -> dict[str, np.ndarray]:
    arrays = dict(np.load(path))
    arrays["features"] = see_tiles(tower, arrays.pop("tiles"))
    return arrays


@torch.inference_mode()
def see_tiles(tower: Nvila, tiles: np.ndarray) -> np.ndarray:
    """Return what a model's tower sees of tiles, (N, H, W, 3) uint8 RGB, as (N, P, E) float16."""
    device = next(tower.parameters()).device
    found = []
    for first in range(0, len(tiles), TILES_AT_ONCE):
        shown = normalize_tiles(tiles[first : first + TILES_AT_ONCE], tower.spec.pixel_dtype)
        found.append(tower.vision(torch.from_numpy(shown).to(device)).half().cpu().numpy())
    return np.concatenate(found)


def open_set(folder: Path) -> DrawnSet:
    """Return a set that was finished; its features are read from disk as they are asked for."""
    arrays = {each.name: np.load(folder / f"{each.name}.npy", mmap_mode="c") for each in fields(DrawnSet)}
    return DrawnSet(**arrays)
