"""Make a build from a recipe: calibrate, quantize layer by layer, write shard by shard, write the manifest.

Peak memory is one layer, the calibration's activations and one shard. Finished parts are kept: a killed build resumes
with its unfinished part, as long as recipe and checkpoint are the same. The manifest is written last, and nothing loads
without it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from nvila_ros.builds.planning import QUANTIZED
from nvila_ros.builds.recipes import Recipe
from nvila_ros.errors import CheckpointError, ConfigError, size_text
from nvila_ros.files import PART, atomic_file, write_atomic, write_errors
from nvila_ros.models.build import MANIFEST, fingerprint, to_tensors, write_manifest
from nvila_ros.models.checkpoint import PARTS, Checkpoint
from nvila_ros.models.host import available_memory
from nvila_ros.models.quantized import NamedWeights, Weight
from nvila_ros.models.shapes import EMBEDDING, HEAD, expected_shapes
from nvila_ros.models.variants import MediaCost, clip_cost, image_cost, tile_range, weight_bytes
from nvila_ros.prompt.time_tokens import TIMES_FILE, time_settings
from nvila_ros.quantization.calibration import Calibration
from nvila_ros.quantization.options import DecoderOptions, OnLayer, TowerOptions
from nvila_ros.quantization.quantize import keep_part, quantize_decoder, quantize_tower, to_half

SHARD_BYTES = 1 << 28
TOWER_TOKENS = 16384  # patches that the tower is calibrated on; more do not change the ranges
RUNTIME_BYTES = 600 << 20  # Python with torch
STATE = "state.json"
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)
GPU_COPIES, GPU_BYTES = 5, 1 << 30
"""On a GPU: the widest layer in float32, as folded, tried, rounded and clipped; what passes through it, and CUDA."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Estimate:
    """Memory and disk that a build needs.

    Attributes:
        memory_bytes: estimate of the peak.
        disk_bytes: estimate of the finished folder.
        gpu_bytes: estimate of the peak of a GPU that the layers are searched on.
    """

    memory_bytes: int
    disk_bytes: int
    gpu_bytes: int


def estimate(recipe: Recipe, checkpoint: Checkpoint) -> Estimate:
    """Estimate what a build of this recipe needs, from shapes alone."""
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
    options = decoder_options(recipe)
    disk = sum(
        weight_bytes(spec, names.get(kind, kind), group_size=options.group_size, is_head_int4=options.is_head_int4)[
            part
        ]
        for part, kind in precision.items()
    )
    tables = () if options.is_head_int4 else (HEAD, EMBEDDING)
    widest = max(size for name, size in layers.items() if name not in tables)
    return Estimate(memory, disk, GPU_COPIES * widest + GPU_BYTES)


def check_room(needed: Estimate, folder: Path) -> None:
    """Refuse a build that does not fit this machine.

    Raises:
        ConfigError: memory or disk is short.
    """
    free_memory, free_disk = available_memory(), shutil.disk_usage(folder).free
    if needed.memory_bytes > free_memory:
        raise ConfigError(
            f"the build needs about {size_text(needed.memory_bytes)} of memory, {size_text(free_memory)} is available; "
            "end other programs, calibrate on fewer frames, or build on another machine"
        )
    if needed.disk_bytes > free_disk:
        raise ConfigError(
            f"the build needs about {size_text(needed.disk_bytes)} on disk, {folder} has {size_text(free_disk)}; "
            "choose another"
        )


def make_build(
    recipe: Recipe,
    checkpoint: Checkpoint,
    calibrate: Callable[[], Calibration],
    folder: Path,
    on_part: OnLayer,
    device: str = "cpu",
) -> None:
    """Build a recipe into a folder, or resume an earlier build of the same.

    Args:
        recipe: what to build.
        checkpoint: to quantize.
        calibrate: returns tiles and prompts; called at most once, and only if an unfinished part needs them.
        folder: made where it is missing; a finished build in it is replaced.
        on_part: called after each layer.
        device: of torch, where layers are searched.

    Raises:
        NvilaError: the checkpoint is incomplete, or a value of the recipe does not suit it.
    """
    values, source = dataclasses.asdict(recipe), fingerprint(checkpoint)
    calibrate = functools.cache(calibrate)
    state = json.dumps({"recipe": values, "checkpoint": source}, indent=1, sort_keys=True)
    if not _is_begun(folder, state):
        _refuse_foreign_files(folder)
        checkpoint.weights()  # faults are found before an earlier build is removed
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
        weights = _quantize(part, recipe, checkpoint, calibrate, on_part, device)
        is_full = (recipe.decoder if part == "llm" else recipe.vision).precision == "fp32"
        write_shards(folder, part, weights if is_full else map(in_half, weights))
        (folder / f"{part}.done").touch()
    with write_errors(folder):
        copy_tokenizer(checkpoint, folder)
    markers = [STATE, *(f"{part}.done" for part in PARTS)]
    write_manifest(folder, checkpoint.spec, precision_of(recipe), values, source, leave_out=markers)
    for name in markers:  # last: the digests take a while, and a build killed meanwhile must not start again
        (folder / name).unlink()


def copy_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy the tokenizer's files of a checkpoint into a build, and what its config says of time tokens."""
    (folder / "tokenizer").mkdir(exist_ok=True)
    for name in TOKENIZER_FILES:
        if (checkpoint.tokenizer_folder / name).is_file():
            shutil.copyfile(checkpoint.tokenizer_folder / name, folder / "tokenizer" / name)
    if settings := time_settings(checkpoint.tokenizer_folder):
        write_atomic(folder / "tokenizer" / TIMES_FILE, (json.dumps(settings) + "\n").encode())


def precision_of(recipe: Recipe) -> str:
    """Return the precisions of a recipe, such as `w8a8+w4a16`, tower first."""
    both = (recipe.vision.precision, recipe.decoder.precision)
    return both[0] if both[0] == both[1] else "+".join(both)


def _is_begun(folder: Path, state: str) -> bool:
    path = folder / STATE
    return path.is_file() and path.read_text(encoding="utf-8") == state


def _refuse_foreign_files(folder: Path) -> None:
    foreign = [path.name for path in folder.iterdir() if not _is_ours(path)] if folder.is_dir() else []
    if foreign:
        raise ConfigError(f"{folder} contains {foreign[:3]}, which no build wrote; choose another folder")


def _begin(folder: Path, state: str) -> None:
    """Prepare the folder: files of another build are removed."""
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
    part: str,
    recipe: Recipe,
    checkpoint: Checkpoint,
    calibrate: Callable[[], Calibration],
    on_part: OnLayer,
    device: str,
) -> NamedWeights:
    if part == "vision_tower":
        tower = tower_options(recipe)
        px = checkpoint.spec.vision.image_px
        tile_NCHW = np.empty((0, 3, px, px), np.float32)
        if tower.needs_calibration:
            tile_NCHW = pick_tiles(checkpoint, calibrate().tile_NCHW)
        return quantize_tower(checkpoint, tower, tile_NCHW, on_part, device)
    if part == "llm":
        decoder = decoder_options(recipe)
        prompts_LD = calibrate().prompts_LD if decoder.needs_calibration else ()
        return quantize_decoder(checkpoint, decoder, prompts_LD, on_part, device)
    return keep_part(checkpoint, part, "fp32")


def needs_calibration(recipe: Recipe) -> bool:
    """Whether a recipe needs activations."""
    return tower_options(recipe).needs_calibration or decoder_options(recipe).needs_calibration


def tower_options(recipe: Recipe) -> TowerOptions:
    """Return how a recipe quantizes the tower."""
    vision = recipe.vision
    return TowerOptions(precision=vision.precision, activations=vision.activations, smooth=vision.smooth or None)


def decoder_options(recipe: Recipe) -> DecoderOptions:
    """Return how a recipe quantizes the language model."""
    decoder = recipe.decoder
    return DecoderOptions(
        precision=decoder.precision,
        group_size=decoder.group_size,
        is_head_int4=decoder.head == "w4a16",
        awq=decoder.awq,
        clip=decoder.clip,
    )


def pick_tiles(checkpoint: Checkpoint, tile_NCHW: np.ndarray) -> np.ndarray:
    """Return evenly spaced tiles with `TOWER_TOKENS` patches in total; at least one tile."""
    num_kept = min(len(tile_NCHW), max(1, TOWER_TOKENS // checkpoint.spec.vision.num_patches))
    return tile_NCHW[np.linspace(0, len(tile_NCHW) - 1, num_kept).astype(int)]


def write_shards(folder: Path, part: str, weights: NamedWeights) -> None:
    """Write weights in order, a file for every `SHARD_BYTES`."""
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
    """Round float tables and matrices to half precision; norms and biases stay float32."""
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
