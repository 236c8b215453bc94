"""`nvila finetune`: tune a checkpoint on conversations.

In: conversations and a checkpoint. Out: a folder that is a checkpoint of the same layout, with the run in `training/`.

Under torchrun the same command runs on several processes. Run again, it goes on after the last saved state.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from nvila_ros.errors import ConfigError
from nvila_ros.files import exclusive_lock, record_run
from nvila_ros.models.build import fingerprint
from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.charts import draw_losses, save_chart
from nvila_ros.tools.finetune_options import add_arguments, read_settings
from nvila_ros.tools.options import print_json, wide_console
from nvila_ros.tools.records import open_sources
from nvila_ros.tools.step_progress import StepProgress, UnitCounter
from nvila_ros.training.finetuning.results import RUN_FOLDER, write_results
from nvila_ros.training.finetuning.run import TuningData, TuningRun, open_run
from nvila_ros.training.finetuning.settings import FROZEN, Settings
from nvila_ros.training.finetuning.state import LOSS_FILE, read_losses
from nvila_ros.training.finetuning.tuning import count_parameters
from nvila_ros.training.ranks import Ranks, joined, local_device

__all__ = ["add_arguments", "run"]

CHART = "loss.png"


def run(args: argparse.Namespace) -> int:
    """Tune a checkpoint, or go on where an earlier run ended.

    Raises:
        NvilaError: a sample, a checkpoint or the folder is not acceptable, or a loss is no number.
    """
    open_data = partial(open_sources, media=args.media, allow_outside=args.allow_outside, window=args.pixel_window)
    data = TuningData(open_data(args.data), open_data(args.held_out))
    settings = read_settings(args)
    checkpoint = open_checkpoint(find_checkpoint(args.checkpoint))
    if checkpoint.path.resolve() in (args.out.resolve(), *args.out.resolve().parents):
        raise ConfigError(f"--out {args.out} lies in the checkpoint that is tuned; choose a folder beside it")
    with joined(args.device) as ranks, _locked(args.out, ranks):
        if args.sweep_ratio:
            figures = _sweep(args, checkpoint, data, settings, ranks)
        else:
            figures = _tune(args, checkpoint, data, settings, ranks)
        if ranks.is_first:
            print_json(figures)
    return 0


@contextmanager
def _locked(out: Path, ranks: Ranks) -> Iterator[None]:
    """Lock the folder of the run, and refuse a folder that holds something else."""
    is_free = not out.exists() or (out / RUN_FOLDER).is_dir() or (out.is_dir() and not any(out.iterdir()))
    if ranks.is_first and not is_free:
        raise ConfigError(f"--out {out} holds something that is no run of finetune; choose another folder")
    with exclusive_lock(out / RUN_FOLDER) if ranks.is_first else nullcontext():
        yield


def _tune(
    args: argparse.Namespace, checkpoint: Checkpoint, data: TuningData, settings: Settings, ranks: Ranks
) -> dict[str, Any]:
    """Run one tuning to its end and write its checkpoint; returns its figures."""
    tuning = _train(args, checkpoint, data, settings, ranks, args.out / RUN_FOLDER)
    write_results(tuning, checkpoint, args.out)
    return _figures(tuning, data) | {"checkpoint": str(args.out)}


def _train(
    args: argparse.Namespace, checkpoint: Checkpoint, data: TuningData, settings: Settings, ranks: Ranks, folder: Path
) -> TuningRun:
    if ranks.is_first:
        record_run(folder, _describe(checkpoint, data, settings))
    ranks.wait()
    tuning = open_run(checkpoint, data, settings, folder, ranks, local_device(args.device))
    if ranks.is_first and tuning.done:
        print(f"{args.out.name}: goes on after step {tuning.done}", file=sys.stderr, flush=True)
    with StepProgress((args.out.name,), is_shown=ranks.is_first) as progress:
        count = progress.counter(args.out.name, tuning.num_steps, tuning.done)
        tuning.train(partial(_report_step, tuning, count))
    if ranks.is_first:
        _draw(tuning)
    return tuning


def _describe(checkpoint: Checkpoint, data: TuningData, settings: Settings) -> dict[str, Any]:
    """Return what decides the steps of a run, to be recorded in its folder."""
    return {
        "data": [[source.name, source.identity()] for source in data.sources],  # steps are by position
        "checkpoint": fingerprint(checkpoint),
        **settings.identity(),
    }


def _figures(tuning: TuningRun, data: TuningData) -> dict[str, Any]:
    """Return the figures of a finished run; every rank must ask."""
    left_out = tuning.left_out()
    held_out = tuning.held_out_loss() if data.held_out else None
    losses = [entry["loss"] for entry in read_losses(tuning.folder / LOSS_FILE) if entry["loss"] is not None]
    last = losses[-max(len(losses) // 10, 1) :]
    num_learned, num_all = count_parameters(tuning.model)
    return {
        "steps": tuning.num_steps,
        "loss": sum(last) / len(last) if last else None,
        "held_out_loss": held_out,
        "left_out": left_out,
        "learned_parameters": num_learned,
        "parameters": num_all,
    }


def _sweep(
    args: argparse.Namespace, checkpoint: Checkpoint, data: TuningData, settings: Settings, ranks: Ranks
) -> dict[str, Any]:
    """Run a tuning with each ratio, and return which has the lowest held-out loss.

    Raises:
        ConfigError: there is nothing to judge by, or the tower does not learn.
    """
    if not data.held_out or settings.tower == FROZEN:
        raise ConfigError("--sweep-ratio needs --held-out samples to judge by, and a --tower that learns")
    rows = []
    for ratio in args.sweep_ratio:
        folder = args.out / RUN_FOLDER / f"ratio-{ratio:g}"
        tuning = _train(args, checkpoint, data, replace(settings, tower_lr_ratio=ratio), ranks, folder)
        rows.append({"ratio": ratio, **_figures(tuning, data)})
        del tuning  # with the next one beside it a GPU would hold two
        gc.collect()
        torch.cuda.empty_cache()
    best = min(rows, key=lambda row: row["held_out_loss"])["ratio"]
    if ranks.is_first and not args.json:
        wide_console().print(_sweep_table(rows, best))
    return {"sweep": rows, "best_ratio": best}


def _sweep_table(rows: list[dict[str, Any]], best: float) -> Table:
    table = Table("tower rate below", "loss", "held-out loss", "")
    for row in rows:
        numbers = (f"{row[key]:.4f}" for key in ("loss", "held_out_loss"))
        table.add_row(f"{row['ratio']:g} x", *numbers, "best" if row["ratio"] == best else "")
    return table


def _report_step(tuning: TuningRun, count: UnitCounter, entry: dict[str, Any]) -> None:
    loss = "no sample" if entry["loss"] is None else f"loss {entry['loss']:.4f}"
    count(f"{loss} {entry['s']:.2f} s")
    if entry["step"] % tuning.settings.save_every == 0:
        _draw(tuning)


def _draw(tuning: TuningRun) -> None:
    settings = tuning.settings
    title = f"loss by step: tower {settings.tower}, llm {settings.llm}, lr {settings.lr:g}"
    save_chart(tuning.folder / CHART, draw_losses(read_losses(tuning.folder / LOSS_FILE), title, tuning.num_steps))
