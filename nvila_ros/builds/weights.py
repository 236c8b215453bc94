"""The first half of `nvila build`: calibrate and quantize a checkpoint's weights by a recipe. Needs torch."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from nvila_ros.builds.builder import check_room, estimate, make_build, needs_calibration
from nvila_ros.builds.forecast import forecast_build
from nvila_ros.builds.recipes import WORLD, Recipe
from nvila_ros.errors import ConfigError, size_text
from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.models.threads import limit_threads
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.quantization.calibration import Calibration, CalibrationSample, calibrate, read_samples
from nvila_ros.quantization.devices import choose_device
from nvila_ros.quantization.options import OnLayer
from nvila_ros.runtime.limits import check_prompt_room
from nvila_ros.world.questions import EVAL_KINDS, ask
from nvila_ros.world.rendering import render
from nvila_ros.world.scene import scene_rng
from nvila_ros.world.scene_sampler import sample_scene

CALIBRATION_SEED = 1 << 28  # of scenes that neither training nor evaluation has
WIDTH, HEIGHT = 640, 480
TIMED_FROM_BYTES = 100_000_000
"""Size of a build that takes minutes; a smaller one is made before its layers are timed."""
STILL_KINDS = tuple(kind for kind in EVAL_KINDS if kind != "motion")


def make_weights(recipe: Recipe, path: Path, out: Path, on_part: OnLayer | None, quantize_on: str = "auto") -> None:
    """Quantize a checkpoint into a folder; without `on_part` only print what that needs.

    Raises:
        NvilaError: checkpoint, media or device are not acceptable, or there is no room.
    """
    checkpoint = open_checkpoint(path)
    if recipe.device != "cpu":  # before the weights are made, which takes long
        check_prompt_room(checkpoint.spec, recipe.limits.max_prompt_tokens)
    media = recipe.calibration.media
    if not media:
        raise ConfigError(f"{recipe.name} must be calibrated on what the robot sees: give a folder with --media")
    if media != WORLD and not Path(media).is_dir():
        raise ConfigError(f"calibration media must be a folder of images and videos, got {media!r}; give --media")
    needed = estimate(recipe, checkpoint)
    device = choose_device(quantize_on, needed.gpu_bytes)
    takes = f"{size_text(needed.memory_bytes)} of memory and {size_text(needed.disk_bytes)} on disk"
    if needed.disk_bytes >= TIMED_FROM_BYTES:
        seconds = forecast_build(recipe, checkpoint.spec, device).total
        where = "this machine alone" if device == "cpu" else "its GPU alone"
        takes += f", {describe_time(seconds)} of {where}, measured on a layer of each kind and scaled"
    print(
        f"{recipe.name}: {checkpoint.path.name} to {out}, tower {recipe.vision.precision}, language model "
        f"{recipe.decoder.precision}; about {takes}",
        file=sys.stderr,
    )
    if on_part is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    check_room(needed, out.parent)
    if not needs_calibration(recipe):
        on_part("calibration", 1, 1)
    with limit_threads(checkpoint.spec):
        make_build(
            recipe, checkpoint, lambda: _calibrate(recipe, checkpoint, media, on_part, device), out, on_part, device
        )


def describe_time(seconds: float) -> str:
    """Return a duration for people, rounded up to whole seconds, minutes or tenths of an hour."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{math.ceil(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _calibrate(recipe: Recipe, checkpoint: Checkpoint, media: str, on_layer: OnLayer, device: str) -> Calibration:
    section = recipe.calibration
    samples = world_samples(section.clip_frames) if media == WORLD else read_samples(Path(media), section.clip_frames)
    chosen = itertools.islice(samples, section.num_samples)
    return calibrate(checkpoint, ChatTokenizer.from_folder(checkpoint.tokenizer_folder), chosen, on_layer, device)


def world_samples(clip_frames: int) -> Iterator[CalibrationSample]:
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
        yield CalibrationSample(tuple(render(scene, t_s, WIDTH, HEIGHT) for t_s in times_s), question.text)
