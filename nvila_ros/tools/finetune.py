"""`nvila finetune`: let a checkpoint learn from conversations.

In: conversations and a checkpoint. Out: a folder that is a checkpoint of the same layout, with the run in `training/`.

Under torchrun the same command runs on several processes. Run again it goes on behind the last saved state.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from nvila_ros.errors import ConfigError
from nvila_ros.loading import find_checkpoint
from nvila_ros.models.artefact import fingerprint
from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.tools.loss_picture import draw_losses
from nvila_ros.tools.options import positive, print_json, whole, wide_console, words
from nvila_ros.tools.picture import save_picture
from nvila_ros.tools.records import open_sources
from nvila_ros.training.conversations.files import RecordFile
from nvila_ros.training.finetuning.results import write_results
from nvila_ros.training.finetuning.run import Data, Run, open_run
from nvila_ros.training.finetuning.settings import BF16, FP32, FROZEN, LLM_MODES, PRECISIONS, TOWER_MODES, Settings
from nvila_ros.training.finetuning.state import LOSS_FILE, RUN_FILE, note_run, read_losses
from nvila_ros.training.finetuning.tuning import count_parameters
from nvila_ros.training.ranks import Ranks, joined, local_device
from nvila_ros.training.staging import alone_in, staged

TRAINING, PICTURE = "training", "loss.png"
_DEFAULTS = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument(
        "data", nargs="+", type=Path, metavar="DATA", help="conversations in JSON or JSON lines, or folders of such"
    )
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="what learns")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="run again to go on")
    parser.add_argument("--media", type=Path, metavar="DIR", help="folder of the media; else that of each file")
    parser.add_argument("--skip-bad", action="store_true", help="leave out and count samples that cannot be read")
    parser.add_argument(
        "--held-out", nargs="+", type=Path, default=[], metavar="DATA", help="conversations to judge by"
    )
    parser.add_argument(
        "--sweep-ratio",
        type=ratios,
        metavar="R,R,..",
        help="try these ratios of rates, such as 1,5,10,50; no checkpoint",
    )
    _add_what_learns(parser)
    _add_how(parser)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device, help="default here: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")


def _add_what_learns(parser: argparse.ArgumentParser) -> None:
    known = _DEFAULTS
    parser.add_argument("--tower", choices=TOWER_MODES, default=known.tower, help="of the tower (default: %(default)s)")
    parser.add_argument("--llm", choices=LLM_MODES, default=known.llm, help="of the model (default: %(default)s)")
    parser.add_argument("--lr", type=above_zero, default=known.lr, metavar="X", help="peak rate (default: %(default)s)")
    parser.add_argument(
        "--tower-lr-ratio",
        type=above_zero,
        default=known.tower_lr_ratio,
        metavar="R",
        help="the tower's rate is so many times lower (default: %(default)s)",
    )
    parser.add_argument("--projector-lr", type=above_zero, metavar="X", help="the projector's rate; else --lr")
    parser.add_argument("--lora-rank", type=positive, default=known.lora_rank, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--lora-alpha", type=positive, default=known.lora_alpha, metavar="X", help="default: %(default)s"
    )
    parser.add_argument(
        "--lora-dropout", type=below_one, default=known.lora_dropout, metavar="S", help="default: %(default)s"
    )
    parser.add_argument(
        "--group-size", type=positive, default=known.group_size, metavar="N", help="of four-bit weights (default: 128)"
    )


def _add_how(parser: argparse.ArgumentParser) -> None:
    known = _DEFAULTS
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--epochs", type=positive, default=known.epochs, metavar="N", help="passes (default: 1)")
    long.add_argument("--steps", type=positive, default=0, metavar="N", help="instead of passes")
    parser.add_argument(
        "--batch",
        type=positive,
        default=known.batch,
        metavar="N",
        help="samples of a step, over all processes (default: 16)",
    )
    parser.add_argument(
        "--row-tokens",
        type=positive,
        default=known.row_tokens,
        metavar="N",
        help="read at once; a step takes as many rows as its samples fill (default: %(default)s)",
    )
    parser.add_argument("--precision", choices=PRECISIONS, help="of the work (default: bf16 on cuda, fp32 on cpu)")
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="compute activations again instead of keeping them"
    )
    parser.add_argument("--shard", action="store_true", help="each process holds its share of the model (FSDP)")
    parser.add_argument(
        "--warmup", type=below_one, default=known.warmup, metavar="S", help="share of steps (default: 0.03)"
    )
    parser.add_argument(
        "--weight-decay", type=zero_or_above, default=known.weight_decay, metavar="X", help="default: 0"
    )
    parser.add_argument(
        "--clip", type=above_zero, default=known.clip, metavar="X", help="norm of gradients (default: 1)"
    )
    parser.add_argument(
        "--save-every", type=positive, default=known.save_every, metavar="N", help="steps (default: 100)"
    )
    parser.add_argument("--workers", type=whole, default=0, metavar="N", help="processes that read ahead (default: 0)")
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="default: 0")


def run(args: argparse.Namespace) -> int:
    """Tune a checkpoint, or go on where an earlier run ended.

    Raises:
        NvilaError: a sample, a checkpoint or the folder is not acceptable, or a loss is no number.
    """
    data = Data(open_sources(args.data, args.media), open_sources(args.held_out, args.media))
    settings = _settings(args)
    checkpoint = open_checkpoint(find_checkpoint(args.checkpoint))
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda needs a GPU that torch sees, and it sees none; take --device cpu")
    with joined(args.device) as ranks, _own(args.out, ranks):
        if args.sweep_ratio:
            told = _sweep(args, checkpoint, data, settings, ranks)
        else:
            told = _tune(args, checkpoint, data, settings, ranks)
        if ranks.is_first:
            print_json(told)
    return 0


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        tower=args.tower,
        llm=args.llm,
        lr=args.lr,
        tower_lr_ratio=args.tower_lr_ratio,
        projector_lr=args.projector_lr,
        weight_decay=args.weight_decay,
        warmup=args.warmup,
        clip=args.clip,
        epochs=args.epochs,
        num_steps=args.steps,
        batch=args.batch,
        row_tokens=args.row_tokens,
        precision=args.precision or (BF16 if args.device == "cuda" else FP32),
        lora_rank=args.lora_rank,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        group_size=args.group_size,
        saves_memory=args.gradient_checkpointing,
        is_sharded=args.shard,
        is_strict=not args.skip_bad,
        save_every=args.save_every,
        num_workers=args.workers,
        seed=args.seed,
    )


@contextmanager
def _own(out: Path, ranks: Ranks) -> Iterator[None]:
    """Keep other runs out of the folder, and this one out of a folder that is another thing's."""
    is_free = not out.exists() or (out / TRAINING).is_dir() or (out.is_dir() and not any(out.iterdir()))
    if ranks.is_first and not is_free:
        raise ConfigError(f"--out {out} holds something that is no run of finetune; choose another folder")
    with alone_in(out / TRAINING) if ranks.is_first else nullcontext():
        yield


def _tune(
    args: argparse.Namespace, checkpoint: Checkpoint, data: Data, settings: Settings, ranks: Ranks
) -> dict[str, Any]:
    """Run one tuning to its end and write its checkpoint; returns what is told of it."""
    tuning = _train(args, checkpoint, data, settings, ranks, args.out / TRAINING)
    write_results(tuning, checkpoint, args.out)
    return _tell(tuning, data) | {"checkpoint": str(args.out)}


def _train(
    args: argparse.Namespace, checkpoint: Checkpoint, data: Data, settings: Settings, ranks: Ranks, folder: Path
) -> Run:
    if ranks.is_first:
        note_run(folder / RUN_FILE, _note(checkpoint, data, settings))
    ranks.wait()
    tuning = open_run(checkpoint, data, settings, folder, ranks, local_device(args.device))
    with _watched(tuning, args.out.name) as on_step:
        tuning.train(on_step)
    if ranks.is_first:
        _draw(tuning)
    return tuning


def _note(checkpoint: Checkpoint, data: Data, settings: Settings) -> dict[str, Any]:
    """Return what decides the steps of a run, for its folder."""
    files = [source for source in data.sources if isinstance(source, RecordFile)]
    return {
        "data": {source.name: source.digest() for source in files},
        "checkpoint": fingerprint(checkpoint),
        **settings.identity(),
    }


def _tell(tuning: Run, data: Data) -> dict[str, Any]:
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
    args: argparse.Namespace, checkpoint: Checkpoint, data: Data, settings: Settings, ranks: Ranks
) -> dict[str, Any]:
    """Run a tuning with each ratio, and tell which has the lowest held-out loss.

    Raises:
        ConfigError: there is nothing to judge by, or the tower does not learn.
    """
    if not data.held_out or settings.tower == FROZEN:
        raise ConfigError("--sweep-ratio needs --held-out samples to judge by, and a --tower that learns")
    rows = []
    for ratio in args.sweep_ratio:
        folder = args.out / TRAINING / f"ratio-{ratio:g}"
        tuning = _train(args, checkpoint, data, replace(settings, tower_lr_ratio=ratio), ranks, folder)
        rows.append({"ratio": ratio, **_tell(tuning, data)})
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


@contextmanager
def _watched(tuning: Run, name: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give what to call after each step: a live bar on a terminal, else a line now and then, both on stderr."""
    console = Console(stderr=True)
    is_watched = tuning.ranks.is_first and console.is_terminal
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
    bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[told]}"), console=console)
    bar.disable = not is_watched
    task = bar.add_task(name, total=tuning.num_steps, completed=tuning.done, told="")
    if tuning.ranks.is_first and tuning.done:
        print(f"{name}: goes on behind step {tuning.done}", file=sys.stderr, flush=True)

    def on_step(entry: dict[str, Any]) -> None:
        loss = "no sample" if entry["loss"] is None else f"loss {entry['loss']:.4f}"
        bar.update(task, completed=entry["step"], told=loss)
        is_due = entry["step"] % max(tuning.num_steps // 20, 1) == 0
        if not is_watched and is_due:
            print(f"{name}: {entry['step']}/{tuning.num_steps} {loss} {entry['s']:.2f} s", file=sys.stderr, flush=True)
        if entry["step"] % tuning.settings.save_every == 0:
            _draw(tuning)

    with bar:
        yield on_step


def _draw(tuning: Run) -> None:
    settings = tuning.settings
    title = f"loss by step: tower {settings.tower}, llm {settings.llm}, lr {settings.lr:g}"
    picture = draw_losses(read_losses(tuning.folder / LOSS_FILE), title, tuning.num_steps)
    with staged(tuning.folder / PICTURE) as part:
        save_picture(part, picture)


def above_zero(text: str) -> float:
    """Read a finite number > 0."""
    return _number(text, "a number > 0", lambda number: number > 0)


def zero_or_above(text: str) -> float:
    """Read a finite number >= 0."""
    return _number(text, "a number >= 0", lambda number: number >= 0)


def below_one(text: str) -> float:
    """Read a number in [0, 1)."""
    return _number(text, "a share in [0, 1)", lambda number: 0 <= number < 1)


def ratios(text: str) -> tuple[float, ...]:
    """Read numbers > 0 parted by commas, each once."""
    found = tuple(dict.fromkeys(above_zero(word) for word in words(text)))
    if not found:
        raise argparse.ArgumentTypeError(f"expected ratios parted by commas, got {text!r}")
    return found


def _number(text: str, wanted: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and fits(number)):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    return number
