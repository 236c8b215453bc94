"""`nvila parity`: compare a checkpoint with golden cases of the reference, stage by stage.

In: a folder with golden cases (see `golden.py`), checkpoints as `ckpt` or `ckpt_hf` beside them, and tables of tilings.
Out: the largest error of every stage and case, and as the last line one JSON object. Exit code 1 if anything is beyond
the tolerance or any greedy id differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nvila_ros.errors import ConfigError, NvilaError
from nvila_ros.files import read_json
from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.contract import Engine
from nvila_ros.runtime.loading import BACKENDS, load_engine
from nvila_ros.runtime.rounded import FLOAT
from nvila_ros.tools.golden import compute, find_cases, read_case
from nvila_ros.tools.options import add_model_options, print_json, wide_console
from nvila_ros.visual.tiling import choose_grid, scale_grids

CHECKPOINTS = ("ckpt", "ckpt_hf")
ATOL = 1e-4
STAGES = {
    "pixel_values": "pixels",
    "vision_features": "features",
    "projector_in": "merged",
    "projector_downsampled": "blocks",
    "projector_out": "projected",
    "media_embeds": "media",
    "input_ids": "ids",
    "inputs_embeds": "embeds",
    "logits": "logits",
    "last_logits": "logits",
    "greedy_ids": "greedy",
    "answer_ids": "greedy",
}
"""Stages as the reference names them, and the heads of the table's columns; some cases hold the last logits alone."""
EXACT = ("input_ids", "greedy_ids", "answer_ids")
INNER = ("projector_downsampled",)
"""What not every engine shows."""
MAX_TILES = 12
NUM_SCALES = 3


@dataclass(slots=True)
class Outcome:
    """The result of one case.

    Attributes:
        errors: largest absolute error by stage; of ids 0 where all are equal, else infinity.
        remark: why it could not be run, or what it took from another checkpoint.
        is_run: whether it came to a comparison.
    """

    name: str
    errors: dict[str, float] = field(default_factory=dict)
    remark: str = ""
    is_failed: bool = False
    is_run: bool = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with golden cases, searched below")
    add_model_options(parser, BACKENDS, precision=FLOAT)
    parser.add_argument("--atol", type=float, default=ATOL, metavar="E", help="largest error (default: %(default)g)")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")


def run(args: argparse.Namespace) -> int:
    """Run every case and print its largest error.

    Raises:
        ConfigError: there is no case below the folder, or the tolerance is no number.
    """
    if not args.atol >= 0:
        raise ConfigError(f"--atol must be at least 0, got {args.atol:g}")
    args.folder = args.folder.resolve()
    outcomes = list(_run_all(args))
    if not outcomes:
        raise ConfigError(f"{args.folder} holds neither *.fp32.json nor tiling*.json at any depth")
    if not args.json:
        console = wide_console()
        console.print(as_table(outcomes))
        print_remarks(console, outcomes)
    failed = sum(outcome.is_failed for outcome in outcomes)
    errors = [error for o in outcomes for stage, error in o.errors.items() if stage not in EXACT]
    max_error = max(errors, default=0.0)
    print_json(
        {
            "cases": len(outcomes),
            "failed": failed,
            "max_error": max_error if np.isfinite(max_error) else None,
            "ids_equal": all(o.is_run and not any(o.errors.get(stage) for stage in EXACT) for o in outcomes),
            "backend": args.backend,
        }
    )
    return 1 if failed else 0


def _run_all(args: argparse.Namespace) -> Iterator[Outcome]:
    paths = find_cases(args.folder)
    for folder in sorted({path.parent for path in paths}):
        cases = [path for path in paths if path.parent == folder]
        found = [folder / name for name in CHECKPOINTS if (folder / name).is_dir()]
        where = folder.relative_to(args.folder)
        if not found:
            yield Outcome(
                str(where), remark=f"no {' or '.join(CHECKPOINTS)} beside its cases", is_failed=True, is_run=False
            )
        for path in found:
            yield from _run_checkpoint(path, cases, f"{where / path.name}", args)
    for path in sorted(args.folder.rglob("tiling*.json")):
        yield _run_tilings(path, args.folder)


def _run_checkpoint(path: Path, cases: list[Path], name: str, args: argparse.Namespace) -> Iterator[Outcome]:
    try:
        checkpoint, tokenizer, remark = _open(path)
        engine = load_engine(checkpoint, args.backend, args.threads, args.precision)
    except NvilaError as error:
        yield Outcome(name, remark=str(error), is_failed=True, is_run=False)
        return
    for case in cases:
        try:
            errors = _compare(case, engine, tokenizer)
        except NvilaError as error:
            yield Outcome(f"{name} {case.name}", remark=str(error), is_failed=True, is_run=False)
            continue
        is_failed = any(not error <= args.atol for error in errors.values())
        yield Outcome(f"{name} {case.name.split('.')[0]}", errors, remark, is_failed)


def _open(path: Path) -> tuple[Checkpoint, ChatTokenizer, str]:
    """Open a checkpoint; what a flat one does not hold is taken from the original beside it.

    A flat config names neither tiling nor video encoder (its published code does), and a converter may have left out
    the tokenizer.
    """
    checkpoint = open_checkpoint(path)
    original = path.with_name(CHECKPOINTS[0])
    if checkpoint.layout != "flat" or not original.is_dir():
        return checkpoint, ChatTokenizer.from_folder(checkpoint.tokenizer_folder), ""
    beside = open_checkpoint(original)
    own = checkpoint.spec
    vision = dataclasses.replace(own.vision, num_live_layers=beside.spec.vision.num_live_layers)
    spec = dataclasses.replace(beside.spec, name=own.name, vision=vision, projector=own.projector, decoder=own.decoder)
    remark = f"tokenizer, tiling and video encoder from {original.name}"
    return dataclasses.replace(checkpoint, spec=spec), ChatTokenizer.from_folder(beside.tokenizer_folder), remark


def _compare(path: Path, engine: Engine, tokenizer: ChatTokenizer) -> dict[str, float]:
    case = read_case(path)
    got = compute(case, engine, tokenizer)
    errors: dict[str, float] = {}
    for name, want in case.want.items():
        stage = name.split(".")[0]
        if stage in STAGES and (name in got or stage not in INNER):
            errors[stage] = max(errors.get(stage, 0.0), largest_error(stage, got.get(name), want))
    if not errors:
        raise ConfigError(f"{path} holds none of the stages {list(STAGES)}")
    return errors


def largest_error(stage: str, got: np.ndarray | None, want: np.ndarray) -> float:
    """Return the largest absolute difference; infinity where shapes, or any of the ids, differ."""
    if got is None:
        return np.inf
    if stage == "logits" and got.shape[1] == 1:
        want = want[:, -1:]  # the engine returns the last position alone
    if stage == "logits":
        got = got[..., : want.shape[-1]]  # the reference cuts rows that pad the table
    if got.shape != want.shape:
        return np.inf
    if stage in EXACT:
        return 0.0 if np.array_equal(got, want) else np.inf
    error = np.abs(got.astype(np.float64) - want).max(initial=0.0)
    return float(error) if np.isfinite(error) else np.inf


def _run_tilings(path: Path, root: Path) -> Outcome:
    name = str(path.relative_to(root))
    try:
        tile_px = _tile_px(path)
        wrong = [row for row in read_json(path) if not _is_tiled_alike(row, tile_px)]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        return Outcome(
            name, remark=f"not a table of tilings: {type(error).__name__} {error}", is_failed=True, is_run=False
        )
    if wrong:
        sizes = ", ".join(f"{row['w']}x{row['h']}" for row in wrong[:5])
        return Outcome(name, remark=f"{len(wrong)} sizes are cut otherwise, first {sizes}", is_failed=True)
    return Outcome(name, remark="all sizes are cut alike by dynamic and dynamic_s2")


def _tile_px(path: Path) -> int:
    """Return the tile's side: from the file's name, else from a checkpoint below."""
    numbers = re.findall(r"\d+", path.stem)
    if numbers:
        return int(numbers[-1])
    checkpoints = sorted(folder for name in CHECKPOINTS for folder in path.parent.rglob(name) if folder.is_dir())
    if not checkpoints:
        raise ConfigError(f"neither its name nor a checkpoint below {path.parent} gives the tile's side")
    return open_checkpoint(checkpoints[0]).spec.vision.image_px


def _is_tiled_alike(row: dict, tile_px: int) -> bool:
    width, height = row["w"], row["h"]
    rows, columns = choose_grid(width, height, tile_px, 1, MAX_TILES)
    tiles = rows * columns + (rows * columns > 1)
    scales = [tile_px * k for k in range(1, NUM_SCALES + 1)]
    grids = scale_grids(width, height, tile_px, scales, MAX_TILES)
    got = {
        "dynamic_cols_rows": [columns, rows],
        "dynamic_tiles": tiles,
        "s2_block_rows_cols": list(grids[-1]),
        "s2_tiles": sum(r * c for r, c in grids),
    }
    return all(got[key] == row[key] for key in got if key in row)


def as_table(outcomes: list[Outcome]) -> Table:
    """Return a table of the largest errors by case and stage that was compared, a remark on a line of its own."""
    heads = {STAGES[stage]: stage for stage in STAGES if any(stage in outcome.errors for outcome in outcomes)}
    table = Table("case", *heads, box=SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
        column.justify = "right"
    table.columns[0].justify = "left"
    for outcome in outcomes:
        cells = [_cell(stage, _largest(outcome, head)) for head, stage in heads.items()]
        table.add_row(outcome.name, *cells, style="red" if outcome.is_failed else "")
    return table


def print_remarks(console: Console, outcomes: list[Outcome]) -> None:
    """Print each remark once, with the cases that it is about."""
    names_by_remark: dict[str, list[str]] = {}
    for outcome in outcomes:
        prefix = "FAILED: " if outcome.is_failed else ""
        beyond = "beyond the tolerance" if outcome.is_failed and outcome.is_run and outcome.errors else ""
        text = "; ".join(filter(None, (beyond, outcome.remark)))
        if text:
            names_by_remark.setdefault(f"{prefix}{text}", []).append(outcome.name)
    for remark, names in names_by_remark.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(f"{names[0]}{more}: {remark}", soft_wrap=True, markup=False)


def _largest(outcome: Outcome, head: str) -> float | None:
    return max((error for stage, error in outcome.errors.items() if STAGES[stage] == head), default=None)


def _cell(stage: str, error: float | None) -> str:
    if error is None:
        return "-"
    if stage in EXACT:
        return "differ" if error else "equal"
    return "0" if error == 0 else "shape" if np.isinf(error) else f"{error:.0e}"
