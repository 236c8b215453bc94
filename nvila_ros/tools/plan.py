"""`nvila plan`: predict whether an engine fits a device and how fast it is, before anything is built.

In: a recipe or a variant's name, and a device. Out: memory needed and free, and times of a question about an image and
about a clip; below, the mean error of such predictions on published measurements. With `--fleet`, how many GPUs
a server needs for a number of robots. Exit code 1 if it does not fit.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from nvila_ros.builds.fleet import PRECISION, UTILIZATION, FleetForecast, forecast_fleet
from nvila_ros.builds.planning import DEVICES, FITTED, QUANTIZED, Device, Forecast, forecast
from nvila_ros.builds.published import EDGE, ROWS, predict
from nvila_ros.builds.recipes import Recipe, read_recipe
from nvila_ros.errors import ConfigError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.spec import ModelSpec
from nvila_ros.models.variants import VARIANTS, MediaCost, clip_cost, image_cost, tile_range
from nvila_ros.paths import share_path
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.options import positive, print_json, size, wide_console
from nvila_ros.visual.tiling import choose_grid
from nvila_ros.visual.views import whole_groups

YES = "yes"
PREDICTED_COLUMNS = ("device", "recipe", "tower, language model", "memory GB", "image s", "clip of 8 s", "tokens/s")
PRECISIONS = {"w8a8": QUANTIZED, "w4a16": QUANTIZED, "fp16": "fp16", "fp32": "fp32"}
"""A recipe's precision of a part, as the family's table names that of a whole model."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's file or name, such as nvila-lite-2b.agx-orin")
    parser.add_argument("--device", choices=DEVICES, help="another device than the recipe's")
    parser.add_argument("--all", action="store_true", help="every device that is known")
    parser.add_argument("--image", type=size, default=(1280, 720), metavar="WxH", help="default: 1280x720")
    parser.add_argument("--frames", type=positive, default=8, metavar="N", help="frames of a clip (default: 8)")
    parser.add_argument("--fleet", type=positive, metavar="N", help="plan a server for N robots, in FP16")
    parser.add_argument(
        "--rate", type=_rate, default=1.0, metavar="HZ", help="questions a second of each robot (default: 1)"
    )
    parser.add_argument(
        "--answer", type=positive, default=2, metavar="TOKENS", help="of each answer; 2 of a choice (default: 2)"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")


def run(args: argparse.Namespace) -> int:
    """Print the prediction.

    Raises:
        NvilaError: the recipe, its model or the device is not known.
    """
    recipe = read_recipe(args.recipe)
    spec = find_spec(recipe.model)
    devices = _devices(args, recipe)
    cases = media_cases(spec, args.image, args.frames)
    if args.fleet is not None:
        return plan_fleet(spec, devices, cases, args)
    rows = [(device, name, _forecast(spec, recipe, device, cost)) for device in devices for name, cost in cases.items()]
    fits = all(_fit_text(recipe, each) == YES for *_, each in rows)
    if not args.json:
        console = wide_console()
        console.print(f"{recipe.model}: tower {recipe.vision.precision}, language model {recipe.decoder.precision}")
        console.print(as_table(recipe, rows))
        longest = max(each.num_prompt for *_, each in rows)
        if longest > recipe.limits.max_prompt_tokens:
            rule = f"too long: {longest} prompt tokens, limits.max_prompt_tokens lets {recipe.limits.max_prompt_tokens}"
            console.print(rule, style="red", soft_wrap=True)
        console.print(_error_line(), soft_wrap=True)
    else:
        forecasts = [
            {"device": d.name, "case": name, **dataclasses.asdict(f), "ttft_s": f.ttft_s} for d, name, f in rows
        ]
        print_json({"model": recipe.model, "fits": fits, "forecasts": forecasts})
    return 0 if fits else 1


def predicted_rows() -> list[tuple[str, ...]]:
    """Return a row for each recipe of `engines/` whose device has a roofline, for the documents."""
    rows = []
    for path in sorted(share_path("engines").glob("*.yaml")):
        recipe = read_recipe(path)
        if recipe.device not in DEVICES or recipe.model not in VARIANTS:
            continue
        spec, device = find_spec(recipe.model), DEVICES[recipe.device]
        image, clip = (_forecast(spec, recipe, device, cost) for cost in media_cases(spec, (1280, 720), 8).values())
        parts = f"{recipe.vision.precision}, {recipe.decoder.precision}"
        firsts = [f"{each.ttft_s:.2f}" for each in (image, clip)]
        rows.append(
            (device.name, f"`{path.stem}`", parts, f"{image.needed_gb:.1f}", *firsts, f"{clip.tokens_per_s:.0f}")
        )
    return sorted(rows)


def plan_fleet(
    spec: ModelSpec, devices: Sequence[Device], cases: Mapping[str, MediaCost], args: argparse.Namespace
) -> int:
    """Print what a server needs for a fleet; 1 where the model fits none of the devices."""
    rows = [
        (device, name, forecast_fleet(spec, device, cost, num_answer=args.answer))
        for device in devices
        for name, cost in cases.items()
    ]
    if args.json:
        forecasts = [
            {
                "device": device.name,
                "case": name,
                **dataclasses.asdict(each),
                "robots_a_gpu": each.robots(args.rate),
                "gpus": each.num_gpus(args.fleet, args.rate),
            }
            for device, name, each in rows
        ]
        print_json({"model": spec.name, "robots": args.fleet, "rate_hz": args.rate, "forecasts": forecasts})
    else:
        console = wide_console()
        asked = f"{args.fleet} robots that each ask {args.rate:g} times a second, answers of {args.answer} tokens"
        console.print(f"{spec.name} in {PRECISION}: {asked}")
        console.print(as_fleet_table(rows, args.fleet, args.rate))
        console.print(f"Planned with {UTILIZATION:.0%} of a GPU. {_error_line()}", soft_wrap=True)
    return 0 if all(each.batch for *_, each in rows) else 1


def as_fleet_table(rows: Sequence[tuple[Device, str, FleetForecast]], num_robots: int, rate_hz: float) -> Table:
    """Return a table of what GPUs do for a fleet."""
    heads = ("device", "question about", "memory GB", "batch", "answers/s", "robots a GPU", "GPUs", "first token ms")
    table = _empty_table(heads)
    for device, name, each in rows:
        memory = f"{each.needed_gb:.1f} of {each.free_gb:.1f}"
        first = f"{1e3 * each.first_s:,.0f}, loaded {1e3 * each.loaded_first_s:,.0f}"
        counts = (each.robots(rate_hz), each.num_gpus(num_robots, rate_hz))
        cells = [str(each.batch), f"{each.answers_per_s:.1f}", *map(str, counts), first] if each.batch else ["NO"]
        table.add_row(device.name, name, memory, *cells, style="" if each.batch else "red")
    return table


def find_spec(model: str) -> ModelSpec:
    """Return the spec of a published variant or of a checkpoint at hand.

    Raises:
        CheckpointError: it is neither.
    """
    return VARIANTS[model].spec if model in VARIANTS else open_checkpoint(find_checkpoint(model)).spec


def media_cases(spec: ModelSpec, image: tuple[int, int], num_frames: int) -> dict[str, MediaCost]:
    """Return what an image of a size and a clip cost."""
    low, high = tile_range(spec)
    rows, columns = choose_grid(*image, spec.vision.image_px, low, high)
    kept = whole_groups(spec, num_frames) or spec.frames_per_group
    return {
        f"image {image[0]}x{image[1]}": image_cost(spec, rows * columns),
        f"clip of {kept}": clip_cost(spec, kept),
    }


def _rate(text: str) -> float:
    """Read a rate in Hz."""
    try:
        rate_hz = float(text)
    except ValueError:
        rate_hz = 0.0
    if not 0.001 <= rate_hz <= 1000:
        raise argparse.ArgumentTypeError(f"expected questions a second in [0.001, 1000], got {text!r}")
    return rate_hz


def _devices(args: argparse.Namespace, recipe: Recipe) -> list[Device]:
    if args.all:
        return list(DEVICES.values())
    name = args.device or recipe.device
    if name not in DEVICES:
        raise ConfigError(f"there is no roofline for {name!r}; choose one of {list(DEVICES)} with --device")
    return [DEVICES[name]]


def _forecast(spec: ModelSpec, recipe: Recipe, device: Device, cost: MediaCost) -> Forecast:
    vision, decoder = PRECISIONS[recipe.vision.precision], PRECISIONS[recipe.decoder.precision]
    return forecast(
        spec,
        device,
        cost,
        vision=vision,
        decoder=decoder,
        group_size=recipe.decoder.group_size,
        is_head_int4=recipe.decoder.head == "w4a16",
    )


def _fit_text(recipe: Recipe, expected: Forecast) -> str:
    """Return whether the device has the memory and the recipe lets the prompt: YES, or what is the matter."""
    if not expected.fits:
        return "NO"
    return YES if expected.num_prompt <= recipe.limits.max_prompt_tokens else "too long"


def as_table(recipe: Recipe, rows: Sequence[tuple[Device, str, Forecast]]) -> Table:
    """Return a table of forecasts."""
    heads = ("device", "question about", "memory GB", "fits", "vision ms", "prompt ms", "first token ms", "tokens/s")
    table = _empty_table(heads)
    for device, name, expected in rows:
        memory = f"{expected.needed_gb:.1f} of {expected.free_gb:.1f}"
        times = [f"{1e3 * seconds:,.0f}" for seconds in (expected.vision_s, expected.prefill_s, expected.ttft_s)]
        fit = _fit_text(recipe, expected)
        cells = (device.name, name, memory, fit, *times, f"{expected.tokens_per_s:.0f}")
        table.add_row(*cells, style="" if fit == YES else "red")
    return table


def _empty_table(heads: Sequence[str]) -> Table:
    """Return a table whose figures, from the third column on, stand on the right."""
    table = Table(*heads, box=SIMPLE_HEAD)
    for column in table.columns[2:]:
        column.justify = "right"
    return table


def _error_line() -> str:
    """Say how far such forecasts are off on what was published."""
    errors: dict[str, list[float]] = {}
    for row in ROWS:
        errors.setdefault(row.source, []).append(abs(predict(row, FITTED) / row.value - 1))
    shares = ", ".join(f"{np.mean(each):.0%} on {source} ({len(each)} rows)" for source, each in errors.items())
    return f"A prediction, not a measurement. Mean error on published figures: {shares}; fitted on {EDGE}."
