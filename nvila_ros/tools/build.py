"""`nvila build`: a checkpoint, quantized by a recipe, in a folder that `--checkpoint` and the node's `model` take.

Run again after it was killed, it goes on with the part it was at.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nvila_ros.building import Estimate, build, check_room, estimate
from nvila_ros.errors import ConfigError
from nvila_ros.models.checkpoint import PARTS, Checkpoint, open_checkpoint
from nvila_ros.models.variants import VARIANTS
from nvila_ros.paths import build_folder
from nvila_ros.pipeline import find_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.quantization.calibration import Calibration, Sample, calibrate, read_samples
from nvila_ros.recipes import Recipe, read_recipe
from nvila_ros.tools.options import print_json
from nvila_ros.training.questions import EVAL_KINDS, ask
from nvila_ros.training.scenes import render, sample_scene, scene_rng

WORLD = "tiny-world"
CALIBRATION_SEED = 1 << 28  # of scenes that neither training nor evaluation draws
WIDTH, HEIGHT = 640, 480
STILL_KINDS = tuple(kind for kind in EVAL_KINDS if kind != "motion")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's file or name, such as nvila-tiny.cpu")
    parser.add_argument("--checkpoint", metavar="DIR", help="what to build from (default: the recipe's model)")
    parser.add_argument("--media", metavar="DIR", help="images and videos of what the robot sees, to calibrate on")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (default: the cache, by the recipe's name)")
    parser.add_argument("--dry-run", action="store_true", help="tell what it takes, and build nothing")


def run(args: argparse.Namespace) -> int:
    """Build, showing progress.

    Raises:
        NvilaError: recipe, checkpoint or media are not acceptable, or there is no room.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = read_recipe(args.recipe)
    checkpoint = open_checkpoint(find_checkpoint(_model(args, recipe)))
    media = args.media or recipe.calibration.media
    if not media:
        raise ConfigError(f"{recipe.name} must be calibrated on what the robot sees: give a folder with --media")
    out = args.out or build_folder(recipe.name)
    needed = estimate(recipe, checkpoint)
    Console(stderr=True).print(_describe(recipe, checkpoint, out, needed), markup=False, highlight=False)
    if args.dry_run:
        return 0
    out.parent.mkdir(parents=True, exist_ok=True)
    check_room(needed, out.parent)
    with _Bars(checkpoint) as bars:
        build(recipe, checkpoint, lambda: _calibrate(recipe, checkpoint, media), out, bars.advance)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print_json({"out": str(out), "bytes": size, "recipe": recipe.name})
    return 0


def _model(args: argparse.Namespace, recipe: Recipe) -> str:
    if args.checkpoint is None and recipe.model in VARIANTS:
        raise ConfigError(f"{recipe.model} is not embedded here; name the folder of its checkpoint with --checkpoint")
    return args.checkpoint or recipe.model


def _calibrate(recipe: Recipe, checkpoint: Checkpoint, media: str) -> Calibration:
    told = recipe.calibration
    samples = world_samples(told.clip_frames) if media == WORLD else read_samples(Path(media), told.clip_frames)
    chosen = itertools.islice(samples, told.num_samples)
    return calibrate(checkpoint, ChatTokenizer.from_folder(checkpoint.tokenizer_folder), chosen)


def world_samples(clip_frames: int) -> Iterator[Sample]:
    """Yield samples of the synthetic world without end: three single frames with a question each, then a clip."""
    for index in itertools.count():
        rng = scene_rng(CALIBRATION_SEED + index)
        is_clip = index % 4 == 3
        scene = sample_scene(rng, aspect=WIDTH / HEIGHT, duration_s=2.0, is_moving=is_clip or None)
        kind = "motion" if is_clip else STILL_KINDS[index % len(STILL_KINDS)]
        question = ask(rng, scene, kind, t_s=None if is_clip else 1.0)
        if question is None:
            continue
        times_s = [2.0 * k / max(clip_frames - 1, 1) for k in range(clip_frames)] if is_clip else [1.0]
        yield Sample(tuple(render(scene, t_s, WIDTH, HEIGHT) for t_s in times_s), question.text)


def _describe(recipe: Recipe, checkpoint: Checkpoint, out: Path, needed: Estimate) -> str:
    return (
        f"{recipe.name}: {checkpoint.path.name} to {out}, tower {recipe.vision.precision}, language model "
        f"{recipe.decoder.precision}; about {needed.memory_bytes / 1e9:.1f} GB of memory and "
        f"{needed.disk_bytes / 1e9:.2f} GB on disk"
    )


class _Bars:
    """A bar for each part on a terminal; a line a part where nobody watches."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        spec = checkpoint.spec
        totals = {"vision_tower": spec.vision.num_live_layers, "llm": spec.decoder.num_layers}
        columns = [TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        console = Console(stderr=True)
        self._bars = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._tasks = {part: self._bars.add_task(part, total=totals[part]) for part in PARTS if part in totals}
        self._is_quiet = not console.is_terminal

    def __enter__(self) -> _Bars:
        self._bars.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._bars.stop()

    def advance(self, part: str, done: int, total: int) -> None:
        self._bars.update(self._tasks[part], completed=done)
        if self._is_quiet and done == total:
            logging.getLogger(__name__).info("%s: %d layers quantized", part, total)
