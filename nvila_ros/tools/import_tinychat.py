"""`nvila import-tinychat`: AWQ weights that TinyChat packed, as a build that every engine loads.

The decoder's layers come from the packed file, all else from the unquantized checkpoint, in half precision. TinyChat's
values have zero points, which engines here do not take, so they are rounded again; the table shows the error.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nvila_ros.builds.builder import (
    SHARD_BYTES,
    check_room,
    copy_tokenizer,
    estimate,
    in_half,
    precision_of,
    write_shards,
)
from nvila_ros.builds.recipes import DEVICES, DecoderRecipe, Recipe, VisionRecipe
from nvila_ros.errors import ConfigError
from nvila_ros.files import sync_tree, write_errors
from nvila_ros.models.build import fingerprint, write_manifest
from nvila_ros.models.checkpoint import Checkpoint, TensorInfo, open_checkpoint
from nvila_ros.models.quantized import NamedWeights
from nvila_ros.quantization.quantize import keep_part
from nvila_ros.quantization.tinychat import GROUP_SIZE, OnMap, open_packed, requantize_layers
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.options import print_json, wide_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("packed", type=Path, metavar="FOLDER", help="safetensors of the packed language model")
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="the model that was packed, unquantized")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the build; must not be there yet")
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="what it is for (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Import, and print the loss.

    Raises:
        NvilaError: the packed file does not suit the checkpoint, or there is no room for the build.
    """
    if args.out.exists():
        raise ConfigError(f"{args.out} is there already; choose another folder, or remove it")
    checkpoint = open_checkpoint(find_checkpoint(args.checkpoint))
    packed = open_packed(args.packed, checkpoint.spec)
    recipe = Recipe(
        name=args.out.name,
        model=checkpoint.path.name,
        device=args.device,
        vision=VisionRecipe(precision="fp16"),
        decoder=DecoderRecipe(precision="w4a16", group_size=GROUP_SIZE),
    )
    with write_errors(args.out):
        args.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    # Memory holds one shard.
    room = dataclasses.replace(estimate(recipe, checkpoint), memory_bytes=2 * SHARD_BYTES)
    check_room(room, args.out.absolute().parent)
    losses: dict[str, float] = {}
    import_build(packed, checkpoint, recipe, args.out, losses.__setitem__)
    by_kind = group_losses(losses)
    wide_console().print(as_table(by_kind))
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    summary = {kind: {"mean": float(np.mean(each)), "worst": max(each)} for kind, each in by_kind.items()}
    print_json({"out": str(args.out), "bytes": size, "loss": summary})
    return 0


def import_build(
    packed: dict[str, TensorInfo], checkpoint: Checkpoint, recipe: Recipe, out: Path, on_map: OnMap
) -> None:
    """Write the build; it gets its name when it is complete.

    Args:
        packed: as `open_packed` gives it.
        checkpoint: what was packed.
        recipe: for the build's manifest.
        out: not there yet.
        on_map: called with the loss of each linear map.

    Raises:
        CheckpointError: a tensor cannot be read, or does not fit half precision.
    """
    parts: dict[str, NamedWeights] = {
        "llm": _decoder(packed, checkpoint, on_map),
        "vision_tower": keep_part(checkpoint, "vision_tower", "fp16"),
        "mm_projector": map(in_half, keep_part(checkpoint, "mm_projector", "fp32")),
    }
    with write_errors(out), tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as staged:
        folder = Path(staged, "build")
        folder.mkdir()
        for part, weights in parts.items():
            write_shards(folder, part, weights)
        copy_tokenizer(checkpoint, folder)
        values = dataclasses.asdict(recipe)
        write_manifest(folder, checkpoint.spec, precision_of(recipe), values, fingerprint(checkpoint))
        sync_tree(folder)
        folder.rename(out)


def group_losses(losses: dict[str, float]) -> dict[str, list[float]]:
    """Return the losses of all layers by kind of linear map, such as `mlp.up_proj`."""
    by_kind: dict[str, list[float]] = {}
    for key, loss in losses.items():
        kind = ".".join(key.removesuffix(".weight").split(".")[-2:])
        by_kind.setdefault(kind, []).append(loss)
    return by_kind


def as_table(by_kind: dict[str, list[float]]) -> Table:
    """Return the relative squared error that rounding again adds, by kind of linear map."""
    table = Table("linear map", "layers", "mean loss", "worst loss", "in layer", box=SIMPLE_HEAD)
    for kind, losses in by_kind.items():
        worst = int(np.argmax(losses))
        table.add_row(kind, str(len(losses)), f"{np.mean(losses):.2e}", f"{losses[worst]:.2e}", str(worst))
    return table


def _decoder(packed: dict[str, TensorInfo], checkpoint: Checkpoint, on_map: OnMap) -> NamedWeights:
    weights = checkpoint.weights("llm")
    yield from map(in_half, ((key, weights[key]) for key in weights if ".layers." not in key))
    yield from requantize_layers(packed, checkpoint.spec, on_map)
