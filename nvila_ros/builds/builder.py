"""From a recipe to a build: calibrate, quantize layer by layer, write shard by shard, seal.

Memory holds one layer, the calibration's activations and one shard. What is finished stays: a build that was killed
goes on with the part it was at, as long as recipe and checkpoint are the same; the manifest comes last, and without one
nothing loads.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from nvila_ros.builds.planning import QUANTIZED
from nvila_ros.builds.recipes import Recipe
from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.files import PART, atomic_file, write_atomic, write_errors
from nvila_ros.models.build import MANIFEST, fingerprint, to_tensors, write_manifest
from nvila_ros.models.checkpoint import PARTS, Checkpoint
from nvila_ros.models.quantized import Weight
from nvila_ros.models.shapes import expected_shapes
from nvila_ros.models.variants import MediaCost, clip_cost, image_cost, tile_range, weight_bytes
from nvila_ros.quantization.calibration import Calibration
from nvila_ros.quantization.options import DecoderOptions, OnLayer, TowerOptions
from nvila_ros.quantization.quantize import keep_part, quantize_decoder, quantize_tower, to_half

SHARD_BYTES = 1 << 28
TOWER_TOKENS = 16384  # patches that the tower is calibrated on: more change no range that matters
RUNTIME_BYTES = 600 << 20  # Python with torch
STATE = "state.json"
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a build takes.

    Attributes:
        memory_bytes: at the peak, about.
        disk_bytes: of the finished folder, about.
    """

    memory_bytes: int
    disk_bytes: int


def estimate(recipe: Recipe, checkpoint: Checkpoint) -> Estimate:
    """Return what a build of this recipe takes, from shapes alone."""
    spec = checkpoint.spec
    shapes = expected_shapes(spec)
    layers: dict[str, int] = {}
    for key, shape in shapes.items():
        name = key.split(".layers.")[0] + key.split(".layers.")[1].split(".")[0] if ".layers." in key else key
        layers[name] = layers.get(name, 0) + 4 * math.prod(shape)
    media = max(image_cost(spec, tile_range(spec)[1]), clip_cost(spec, spec.frames_per_group), key=_num_tiles)
    num_samples = recipe.calibration.num_samples
    patches = num_samples * media.num_tiles * spec.vision.num_patches * spec.vision.width
    positions = num_samples * media.num_positions * spec.decoder.width
    # A layer in float32, as folded, as clipped and quantized; activations before and after it; a shard twice.
    memory = 4 * max(layers.values()) + 2 * 4 * max(patches, positions) + 2 * SHARD_BYTES + RUNTIME_BYTES
    precision = {"vision_tower": recipe.vision.precision, "mm_projector": "fp16", "llm": recipe.decoder.precision}
    names = {"w8a8": QUANTIZED, "w4a16": QUANTIZED}
    told = decoder_options(recipe)
    disk = sum(
        weight_bytes(spec, names.get(kind, kind), group_size=told.group_size, is_head_int4=told.is_head_int4)[part]
        for part, kind in precision.items()
    )
    return Estimate(memory, disk)


def check_room(needed: Estimate, folder: Path) -> None:
    """Refuse a build that this machine has no room for.

    Raises:
        ConfigError: memory or disk is short.
    """
    free_memory, free_disk = available_memory(), shutil.disk_usage(folder).free
    if needed.memory_bytes > free_memory:
        raise ConfigError(
            f"the build needs about {_gib(needed.memory_bytes)} of memory, {_gib(free_memory)} is available; "
            "end other programs, calibrate on fewer frames, or build on another machine"
        )
    if needed.disk_bytes > free_disk:
        raise ConfigError(
            f"the build needs about {_gib(needed.disk_bytes)} on disk, {folder} has {_gib(free_disk)}; choose another"
        )


def available_memory() -> int:
    """Return the bytes of memory that new work can have, as Linux tells it."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ConfigError("/proc/meminfo does not tell MemAvailable; builds run on Linux")


def make_build(
    recipe: Recipe,
    checkpoint: Checkpoint,
    calibrate: Callable[[], Calibration],
    folder: Path,
    on_part: OnLayer,
) -> None:
    """Build a recipe into a folder, or go on where an earlier build of the same ended.

    Args:
        recipe: what to build.
        checkpoint: of what.
        calibrate: gives tiles and prompts; called once, and only if a part that is still to be done looks at them.
        folder: made if it is not there; a finished build in it is replaced.
        on_part: told of progress.

    Raises:
        NvilaError: the checkpoint is not whole, or a value of the recipe does not suit it.
    """
    told, source = dataclasses.asdict(recipe), fingerprint(checkpoint)
    calibrate = functools.cache(calibrate)
    state = json.dumps({"recipe": told, "checkpoint": source}, indent=1, sort_keys=True)
    if not _is_begun(folder, state):
        _refuse_strangers(folder)
        checkpoint.weights()  # what is amiss is found before an earlier build is removed
        if needs_calibration(recipe):
            calibrate()
        with write_errors(folder):
            _begin(folder, state)
    for part in PARTS:
        if (folder / f"{part}.done").is_file():
            _log.info("%s is done already", part)
            continue
        for leftover in folder.glob(f"{part}-*.safetensors*"):
            leftover.unlink()
        weights = _quantize(part, recipe, checkpoint, calibrate, on_part)
        is_full = (recipe.decoder if part == "llm" else recipe.vision).precision == "fp32"
        write_shards(folder, part, weights if is_full else map(in_half, weights))
        (folder / f"{part}.done").touch()
    with write_errors(folder):
        copy_tokenizer(checkpoint, folder)
    notes = [STATE, *(f"{part}.done" for part in PARTS)]
    write_manifest(folder, checkpoint.spec, precision_of(recipe), told, source, leave_out=notes)
    for name in notes:  # last, since sealing takes a while, too, and what is done is not to be done again
        (folder / name).unlink()


def copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Give a build the files of its checkpoint's tokenizer."""
    (folder / "tokenizer").mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (checkpoint.tokenizer_folder / name).is_file():
            shutil.copyfile(checkpoint.tokenizer_folder / name, folder / "tokenizer" / name)


def precision_of(recipe: Recipe) -> str:
    """Return the name of a recipe's precisions, such as `w8a8+w4a16`, tower first."""
    both = (recipe.vision.precision, recipe.decoder.precision)
    return both[0] if both[0] == both[1] else "+".join(both)


def _is_begun(folder: Path, state: str) -> bool:
    told = folder / STATE
    return told.is_file() and told.read_text(encoding="utf-8") == state


def _refuse_strangers(folder: Path) -> None:
    strangers = [path.name for path in folder.iterdir() if not _is_ours(path)] if folder.is_dir() else []
    if strangers:
        raise ConfigError(f"{folder} holds {strangers[:3]}, which no build wrote; choose another folder")


def _begin(folder: Path, state: str) -> None:
    """Make the folder ready: what an earlier build of something else left is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)  # first, so that half a folder is never taken for a build
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    write_atomic(folder / STATE, state.encode())


def _is_ours(path: Path) -> bool:
    shards = tuple(f"{part}-" for part in PARTS)
    is_shard = path.name.startswith(shards) and path.suffix == ".safetensors"
    is_partial = path.name.startswith(PART)
    return is_shard or is_partial or path.suffix == ".done" or path.name in (STATE, MANIFEST, "tokenizer", "plans")


def _quantize(
    part: str, recipe: Recipe, checkpoint: Checkpoint, calibrate: Callable[[], Calibration], on_part: OnLayer
) -> Iterator[tuple[str, Weight]]:
    if part == "vision_tower":
        tower = tower_options(recipe)
        px = checkpoint.spec.vision.image_px
        tile_NCHW = np.empty((0, 3, px, px), np.float32)
        if tower.needs_calibration:
            tile_NCHW = pick_tiles(checkpoint, calibrate().tile_NCHW)
        return quantize_tower(checkpoint, tower, tile_NCHW, on_part)
    if part == "llm":
        decoder = decoder_options(recipe)
        prompts_LD = calibrate().prompts_LD if decoder.needs_calibration else ()
        return quantize_decoder(checkpoint, decoder, prompts_LD, on_part)
    return keep_part(checkpoint, part, "fp32")


def needs_calibration(recipe: Recipe) -> bool:
    """Whether anything that a recipe asks for is found from activations."""
    return tower_options(recipe).needs_calibration or decoder_options(recipe).needs_calibration


def tower_options(recipe: Recipe) -> TowerOptions:
    """Return how a recipe quantizes the tower."""
    told = recipe.vision
    return TowerOptions(precision=told.precision, activations=told.activations, smooth=told.smooth or None)


def decoder_options(recipe: Recipe) -> DecoderOptions:
    """Return how a recipe quantizes the language model."""
    told = recipe.decoder
    return DecoderOptions(
        precision=told.precision,
        group_size=told.group_size,
        is_head_int4=told.head == "w4a16",
        awq=told.awq,
        clip=told.clip,
    )


def pick_tiles(checkpoint: Checkpoint, tile_NCHW: np.ndarray) -> np.ndarray:
    """Return as many tiles, spread evenly, as hold `TOWER_TOKENS` patches; at least one."""
    num_kept = min(len(tile_NCHW), max(1, TOWER_TOKENS // checkpoint.spec.vision.num_patches))
    return tile_NCHW[np.linspace(0, len(tile_NCHW) - 1, num_kept).astype(int)]


def write_shards(folder: Path, part: str, weights: Iterable[tuple[str, Weight]]) -> None:
    """Write weights as they come, a file whenever enough have."""
    tensors: dict[str, np.ndarray] = {}
    num_shards = 0
    for key, weight in weights:
        tensors |= to_tensors(key, weight)
        if sum(array.nbytes for array in tensors.values()) >= SHARD_BYTES:
            num_shards += 1
            _write_shard(folder / f"{part}-{num_shards:05}.safetensors", tensors)
            tensors = {}
    if tensors:
        _write_shard(folder / f"{part}-{num_shards + 1:05}.safetensors", tensors)
    if not num_shards and not tensors:
        raise CheckpointError(f"{part} gave no tensors to write")


def in_half(named: tuple[str, Weight]) -> tuple[str, Weight]:
    """Keep tables and matrices that stay float in half precision; norms and biases in full."""
    key, weight = named
    if isinstance(weight, np.ndarray) and weight.ndim > 1 and weight.dtype == np.float32:
        return key, to_half(key, weight)
    return key, weight


def _write_shard(path: Path, tensors: dict[str, np.ndarray]) -> None:
    with atomic_file(path) as part:
        save_file(tensors, part)
        part.chmod(0o644)


def _num_tiles(cost: MediaCost) -> int:
    return cost.num_tiles


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.1f} GiB"
