"""`nvila build`: prepare a checkpoint for a device, in a folder that `--checkpoint` and the node's `model` take.

    checkpoint -> quantized weights, on any machine with torch -> plans, on the device where TensorRT runs

After it was killed, the same command resumes with the unfinished part. Existing weights are not made again, also those
from another machine: copy the folder, and the same command, or the folder's name in place of the recipe's, continues
with the plans. That half needs neither torch nor the checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvila_ros.builds.recipes import ARCHITECTURES, Recipe, changed_weights, read_recipe, recipe_from_dict, with_media
from nvila_ros.errors import BackendError, CheckpointError, ConfigError
from nvila_ros.files import exclusive_lock
from nvila_ros.hub.published import fetch_command
from nvila_ros.models.build import MANIFEST, fingerprint, is_build, open_build, rewrite_plans
from nvila_ros.models.checkpoint import open_checkpoint, read_object
from nvila_ros.paths import build_folder
from nvila_ros.runtime.loading import find_checkpoint, has_checkpoint
from nvila_ros.runtime.tensorrt.api import FLAVOURS
from nvila_ros.runtime.tensorrt.compile import CompileJob, best_form, compile_plans, limits_of
from nvila_ros.runtime.tensorrt.machine import Machine, find_machine, name_machine
from nvila_ros.runtime.tensorrt.plans import PARTS as PLANS
from nvila_ros.tools.options import print_json
from nvila_ros.tools.step_progress import StepProgress

WEIGHTS: tuple[str, ...] = ("calibration", "llm", "vision_tower")
"""Steps whose layers are counted while weights are made."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Compiler:
    """TensorRT, and the machine to compile for, which may be another than this one."""

    trt: Any
    machine: Machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's file or name, or the folder of a build to resume")
    parser.add_argument("--checkpoint", metavar="DIR", help="what to build from (default: the recipe's model)")
    parser.add_argument("--media", metavar="DIR", help="images and videos of what the robot sees, to calibrate on")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: the cache, by the recipe's name)")
    parser.add_argument("--flavour", choices=FLAVOURS, help="compile with it for the GPU at hand, whichever that is")
    parser.add_argument("--target", metavar="SM", help="compile with tensorrt_rtx for a GPU not at hand, as SM86")
    parser.add_argument(
        "--quantize-on",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where torch searches the layers (default: a GPU that it sees and that has room, else the CPU)",
    )
    parser.add_argument("--parts-only", action="store_true", help="stop at the quantized parts, which run anywhere")
    parser.add_argument(
        "--progress", choices=("bars", "json"), default="bars", help="show bars, or print a JSON line at each step"
    )
    parser.add_argument("--wait", action="store_true", help="wait for another build in the folder (default: refuse)")
    parser.add_argument("--dry-run", action="store_true", help="print what it takes, and build nothing")


def run(args: argparse.Namespace) -> int:
    """Build, showing progress.

    Raises:
        NvilaError: recipe, checkpoint, media or options are not acceptable, or there is no room.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe, out = find_target(args)
    compiler, left = find_compiler(args, recipe, out)
    if args.dry_run:
        if source := find_source(args, recipe, out):
            _make_weights(args, recipe, source, out, None)
        _log.info("%s", left or (f"plans for {compiler.machine}" if compiler else "no plans"))
        return 0
    with exclusive_lock(out, work="build", is_inside=False, waits=args.wait):
        _build(args, recipe, out, compiler)
    if left:
        _log.warning("%s", left)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print_json(
        {"out": str(out), "bytes": size, "recipe": recipe.name, "plans": str(compiler.machine) if compiler else ""}
    )
    return 0


def _build(args: argparse.Namespace, recipe: Recipe, out: Path, compiler: Compiler | None) -> None:
    """Make what the folder lacks, under its lock."""
    source = find_source(args, recipe, out)
    if source is None:
        recipe = _as_built(recipe, out)
    steps = (WEIGHTS if source else ()) + (PLANS if compiler else ())
    with StepProgress(steps, as_json=args.progress == "json") as progress:
        if source:
            _make_weights(args, recipe, source, out, progress.advance)
            for part in WEIGHTS:
                progress.advance(part, 1, 1)  # one that was done before, or stays float, reports no layers
        if compiler:
            _compile(recipe, out, compiler, progress)
        elif not source:
            _store_recipe(recipe, out)


def find_target(args: argparse.Namespace) -> tuple[Recipe, Path]:
    """Return the recipe and the folder to build into; a build's folder has both.

    Raises:
        ConfigError: there is no such recipe, or it breaks a rule.
        CheckpointError: the build's manifest has no recipe.
    """
    folder = Path(args.recipe).expanduser()
    if not is_build(folder):
        recipe = with_media(read_recipe(args.recipe), args.media or "")
        return recipe, args.out or build_folder(recipe.name)
    if args.out and args.out.resolve() != folder.resolve():
        raise ConfigError(f"a build goes on in its own folder, got {folder} and --out {args.out}")
    values = read_object(folder / MANIFEST).get("recipe")
    if not isinstance(values, dict):
        raise CheckpointError(f"{folder / MANIFEST} has no recipe; name the recipe and --out")
    return with_media(recipe_from_dict(values), args.media or ""), folder


def find_source(args: argparse.Namespace, recipe: Recipe, out: Path) -> Path | None:
    """Return the checkpoint to make weights of, or None where the folder has them already.

    Weights from another machine are used as they are where their checkpoint is not on this one.

    Raises:
        NvilaError: they must be made, and there is no checkpoint.
    """
    checkpoint = _find_checkpoint(args, recipe)
    why = _missing_weights(recipe, out, checkpoint)
    if not why:
        _log.info("%s has the weights already", out)
        return None
    if checkpoint is None:
        how = fetch_command(recipe.model)
        raise ConfigError(
            f"{why}; to make weights of {recipe.model}, "
            + (f"run: {how}, or " if how else "")
            + "name its folder with "
            "--checkpoint"
        )
    _log.info("quantizing: %s", why)
    return checkpoint


def _find_checkpoint(args: argparse.Namespace, recipe: Recipe) -> Path | None:
    """Return the checkpoint of the recipe, or None where it is not on this machine."""
    if args.checkpoint is not None:
        return find_checkpoint(args.checkpoint)
    return find_checkpoint(recipe.model) if has_checkpoint(recipe.model) else None


def _missing_weights(recipe: Recipe, out: Path, checkpoint: Path | None) -> str:
    """Return why the folder's weights are not those of the recipe; empty if they are."""
    if not is_build(out):
        return f"{out} has no finished weights"
    try:
        built = open_build(out)
    except CheckpointError as error:
        return str(error)
    changed = changed_weights(built.recipe, recipe)
    if changed:
        return f"{out} was built by other values of {', '.join(changed)}"
    if checkpoint and built.source and fingerprint(open_checkpoint(checkpoint)) != built.source:
        return f"{out} was built of another checkpoint than {checkpoint}"
    return ""


def find_compiler(args: argparse.Namespace, recipe: Recipe, out: Path) -> tuple[Compiler | None, str]:
    """Return what compiles plans on this machine, or None and what is left to do.

    Raises:
        ConfigError: options ask for plans of a recipe that has none.
        BackendError: options ask for what is not on this machine.
    """
    if recipe.device == "cpu" or args.parts_only:
        if args.flavour or args.target:
            raise ConfigError(
                f"--flavour and --target compile plans, which {recipe.device} with these options has none of"
            )
        left = "" if recipe.device == "cpu" else "the parts run anywhere but on TensorRT"
    elif args.target:
        if args.flavour == "tensorrt":
            raise ConfigError("tensorrt compiles for the GPU that it runs on; --target is for tensorrt_rtx")
        return Compiler(*name_machine(args.target)), ""
    elif args.flavour:
        trt, machine, _ = find_machine([args.flavour])
        return Compiler(trt, machine), ""
    else:
        try:
            trt, machine, _ = find_machine(FLAVOURS)
            if machine.architecture in ARCHITECTURES[recipe.device]:
                return Compiler(trt, machine), ""
            left = f"{machine} is no {recipe.device}; name --flavour to compile for it all the same"
        except BackendError as error:
            left = f"nothing compiles plans here: {error}"
    return None, left and f"{left}. Left to do: copy {out} to the {recipe.device} and run there: nvila build {out.name}"


def _as_built(recipe: Recipe, out: Path) -> Recipe:
    """Return a recipe with the media that the weights were calibrated on, where it leaves them open."""
    if recipe.calibration.media:
        return recipe
    values = read_object(out / MANIFEST)["recipe"]  # as stored: a recipe of another version may have other values
    return with_media(recipe, values.get("calibration", {}).get("media", ""))


def _make_weights(
    args: argparse.Namespace,
    recipe: Recipe,
    source: Path,
    out: Path,
    on_part: Callable[[str, int, int], None] | None,
) -> None:
    # A thread of torch that waits for another sleeps: one that spins takes the core from the robot's own processes, and
    # from the thread it waits for. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Here and not above: on a robot that only compiles there is no torch.
    from nvila_ros.builds.weights import make_weights

    make_weights(recipe, source, out, on_part, args.quantize_on)


def _compile(recipe: Recipe, out: Path, compiler: Compiler, progress: StepProgress) -> None:
    job = CompileJob(
        trt=compiler.trt,
        machine=compiler.machine,
        form=best_form(compiler.trt),
        limits=limits_of(open_build(out).spec, recipe.limits),
        on_progress=lambda part, phase, share: progress.advance(part, int(100 * share), 100, phase),
    )
    for part, record in compile_plans(out, job, dataclasses.asdict(recipe)).items():
        progress.advance(part, 100, 100)
        _log.info("%s: %s bytes in %s s", part, f"{record.digest['bytes']:,}", record.build_s)


def _store_recipe(recipe: Recipe, out: Path) -> None:
    """Store the given recipe in the manifest; it may differ in values that no weight depends on."""
    manifest, wanted = read_object(out / MANIFEST), dataclasses.asdict(recipe)
    if manifest["recipe"] != wanted:
        rewrite_plans(out, wanted, manifest.get("plans", ()))
