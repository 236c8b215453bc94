"""`nvila inspect`: what a checkpoint is, what it costs to run and what is wrong with it; or the family as a table.

In: nothing, a checkpoint, or the name of a published variant. Out: tables, or with `--json` one JSON object that says
the same. Weights are read once, to find values that are not finite; `--no-weights` reads configs and headers alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nvila_ros.errors import size_text
from nvila_ros.models.variants import (
    PRECISIONS,
    VARIANTS,
    Variant,
    clip_cost,
    count_parameters,
    image_cost,
    tile_range,
    weight_bytes,
)
from nvila_ros.runtime.loading import find_checkpoint, has_checkpoint
from nvila_ros.tools.inspection import inspect_folder
from nvila_ros.tools.options import print_json
from nvila_ros.tools.step_progress import StepProgress
from nvila_ros.tools.variant_table import PART_NAMES, Values, describe_inspection, describe_variant

FAMILY_COLUMNS = (
    "variant",
    "vision tower",
    "projector",
    "language model",
    "image mode",
    "video",
    "parameters",
    "GB in fp32 / fp16 / W8A8 + W4A16",
    "prompt positions of an image",
    "of a clip",
)
NUM_KINDS = 6  # of these columns describe a variant, the others its costs
PIPE_WIDTH = 100  # columns, where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="CHECKPOINT",
        help="folder, or a published name such as NVILA-8B, fetched or not; without it, the whole family",
    )
    parser.add_argument(
        "--no-weights",
        action="store_true",
        help="read configs and headers alone (default: also look for NaN in weights)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object alone")


def run(args: argparse.Namespace) -> int:
    """Print the page; 1 if something is wrong with the checkpoint.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    page = _page(args.checkpoint, reads_weights=not args.no_weights)
    if args.json:
        print_json(page)
    else:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = PIPE_WIDTH
        print_page(console, page) if args.checkpoint else print_family(console)
    return int(bool(page.get("faults")))


def _page(name: str | None, reads_weights: bool) -> Values:
    if not name:
        return {"family": [describe_variant(variant) for variant in VARIANTS.values()]}
    if name in VARIANTS and not has_checkpoint(name):
        return describe_variant(VARIANTS[name])
    root = find_checkpoint(name)
    if not reads_weights:
        return describe_inspection(inspect_folder(root))
    with StepProgress(("weights",), says_done=False) as progress:
        return describe_inspection(inspect_folder(root, lambda done, total: _report(progress, done, total)))


def _report(progress: StepProgress, done: int, total: int) -> None:
    progress.advance("weights", done, max(total, 1), f"read {done / 1e9:.1f} of {total / 1e9:.1f} GB")


def family_rows() -> list[tuple[str, ...]]:
    """Return a row for each variant, under `FAMILY_COLUMNS`."""
    return [_family_row(variant) for variant in VARIANTS.values()]


def _family_row(variant: Variant) -> tuple[str, ...]:
    spec = variant.spec
    factor, group = spec.projector.downsample, spec.frames_per_group
    fewest, most = tile_range(spec)
    sizes = [sum(weight_bytes(spec, precision).values()) / 1e9 for precision in PRECISIONS]
    return (
        variant.name,
        f"SigLIP {spec.vision.image_px} px",
        f"{factor}x{factor}, {spec.projector.in_width} to {spec.projector.out_width}",
        variant.language_model,
        spec.image_mode + (f", {fewest} to {most} tiles" if most > fewest else ""),
        f"{spec.num_video_frames} frames" + (f", {group} averaged" if group > 1 else ""),
        f"{sum(part.live for part in count_parameters(spec).values()) / 1e9:.2f} B",
        " / ".join(f"{size:.1f}" for size in sizes),
        " to ".join(f"{image_cost(spec, n).num_positions:,}" for n in sorted({fewest, most})),
        f"{clip_cost(spec, spec.num_video_frames).num_positions:,}",
    )


def print_family(console: Console) -> None:
    """Print the table of the family, and what of it is inferred."""
    kinds, costs = _table(*FAMILY_COLUMNS[:NUM_KINDS]), _table(FAMILY_COLUMNS[0], *FAMILY_COLUMNS[NUM_KINDS:])
    for row in family_rows():
        kinds.add_row(*row[:NUM_KINDS])
        costs.add_row(row[0], *row[NUM_KINDS:])
    console.print(kinds, costs, sep="\n", end="")
    console.print("Not read from published configs:")
    for variant in VARIANTS.values():
        if variant.inferred:
            console.print(f"- {variant.name}: {variant.inferred}")


def print_page(console: Console, page: Values) -> None:
    """Print the page of one checkpoint or variant."""
    for line in _title_lines(page):
        console.print(line)
    console.print(_parts_table(page))
    if page["spec"]:
        console.print(f"Images: {escape(page['image'])}")
        console.print(f"Video: {escape(page['video'])}\n")
        console.print(_costs_table(page), _bytes_table(page), sep="\n", end="")
    if page["tokens"]:
        console.print(_tokens_table(page["tokens"]))
    for fault in page["faults"]:
        console.print(f"[red]fault:[/red] {escape(fault)}")
    for remark in page["remarks"]:
        console.print(f"[yellow]remark:[/yellow] {escape(remark)}")
    if page["checkpoint"] and not page["faults"]:
        console.print("[green]sound:[/green] configs, tokenizer and every tensor that reaches an answer are there")


def _title_lines(page: Values) -> Iterator[str]:
    yield f"[bold]{escape(page['checkpoint'] or page['variant'])}"
    if page["checkpoint"]:
        yield f"{page['layout'] or 'unknown'} layout"
    if page["variant"]:
        same = f"dimensions and kinds of {page['variant']}, " if page["checkpoint"] else ""
        yield f"{same}published as {', '.join(page['repos'])}"
        yield page["note"]
        if page["inferred"]:
            yield f"not read from published configs: {page['inferred']}"
    elif page["spec"]:
        yield "dimensions of no published variant"


def _parts_table(page: Values) -> Table:
    table = _table("part", "kind and sizes", "layers", "parameters", *["in the files"] * bool(page["checkpoint"]))
    for part in page["parts"]:
        cells = [", ".join(part[key] for key in ("kind", "sizes") if key in part), str(part.get("layers", ""))]
        if part.get("dead_layers"):
            cells[-1] += f", {part['dead_layers']} dead"
        cells.append(f"{part['parameters']:,}" if "parameters" in part else "")
        if part.get("dead_parameters"):
            cells[-1] += f"\n{part['dead_parameters']:,} dead"
        if page["checkpoint"]:
            cells.append(_files_cell(part))
        table.add_row(part["part"], *cells)
    return table


def _files_cell(part: Values) -> str:
    if not part["files"]:
        return "none"
    plural = "s" if part["files"] > 1 else ""
    return f"{', '.join(part['dtypes'])}, {size_text(part['bytes_in_files'])}, {part['files']} file{plural}"


def _costs_table(page: Values) -> Table:
    table = _table("shown", "grid", "tiles", "visual tokens", "prompt positions", "KV cache in fp16")
    for image in page["images"]:
        name, grid = f"image {image['width']}x{image['height']}", f"{image['columns']} x {image['rows']}"
        table.add_row(name, grid, *_cost_cells(image, page))
    clip = page["clip"]
    table.add_row(f"clip of {clip['num_frames']} frames", "", *_cost_cells(clip, page))
    thousand = {"num_positions": 1000}
    table.add_row("any text", "", *_cost_cells(thousand, page))
    return table


def _cost_cells(cost: Values, page: Values) -> Sequence[str]:
    counts = [f"{cost[name]:,}" if name in cost else "" for name in ("num_tiles", "num_visual", "num_positions")]
    return *counts, size_text(page["kv_bytes_per_1000_positions"] * cost["num_positions"] // 1000)


def _bytes_table(page: Values) -> Table:
    table = _table("memory of live weights", *PART_NAMES.values(), "together")
    for precision, by_part in page["bytes_by_precision"].items():
        table.add_row(precision, *(size_text(by_part[part]) for part in PART_NAMES), size_text(sum(by_part.values())))
    return table


def _tokens_table(tokens: Sequence[Values]) -> Table:
    table = _table("token", "id", "where")
    where = {True: "row of the embedding table", False: "outside the embedding table, never an input", None: ""}
    for token in tokens:
        stop = ", ends an answer" if token["is_stop"] else ""
        table.add_row(token["name"], str(token["id"]), where[token["is_in_table"]] + stop)
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name)
    return table
