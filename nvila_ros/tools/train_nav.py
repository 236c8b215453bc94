"""`nvila train-nav`: nvila-tiny-nav, which follows instructions in rooms; made of nvila-tiny by `nvila finetune`.

Each step is gone on with when the verb is run again. Walks of a follower are written as conversations; the model learns
to choose the next step from the current frame alone, and then from the eight frames that it is asked about. In the
rounds behind that the model leads the walks itself, the follower says what would have been right, and the model learns
from all of them. A larger --walk-steps begins the later stages anew from the one before.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from nvila_ros.errors import ConfigError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools import finetune
from nvila_ros.tools.drive.choosers import ModelChooser
from nvila_ros.tools.options import positive, whole
from nvila_ros.tools.step_progress import StepProgress
from nvila_ros.training.finetuning.results import RUN_FOLDER
from nvila_ros.training.nav_data import LOOK, WALK, count_walks, records_path, write_walks
from nvila_ros.world.rooms.episodes import Chooser

_HOW = ("--tower", "layernorm", "--tower-lr-ratio", "2", "--llm", "full", "--lr", "1e-3", "--warmup", "0.05")
_ROUND_LR = "5e-4"  # of a model that knows its way mostly: the later of two options counts
_ROUND_WALKS = 10**6  # so many walks lie between those of two rounds
_MORE = ("--row-tokens", "256", "--save-every", "10", "--json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the checkpoint is written")
    parser.add_argument(
        "--work", type=Path, required=True, metavar="DIR", help="keeps data and state: run again to go on"
    )
    parser.add_argument(
        "--start", default="nvila-tiny", metavar="CKPT", help="checkpoint to tune (default: %(default)s)"
    )
    parser.add_argument("--walks", type=positive, default=2000, metavar="N", help="walks to learn from (default: 2000)")
    parser.add_argument("--look-steps", type=whole, default=2000, metavar="N", help="of one frame (default: 2000)")
    parser.add_argument("--walk-steps", type=whole, default=3000, metavar="N", help="of eight frames (default: 3000)")
    parser.add_argument("--rounds", type=whole, default=2, metavar="N", help="that the model leads (default: 2)")
    parser.add_argument("--round-walks", type=positive, default=1000, metavar="N", help="of a round (default: 1000)")
    parser.add_argument("--round-steps", type=positive, default=2000, metavar="N", help="of a round (default: 2000)")
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="records of a step (default: 8)")
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="processes that walk (default: 2)")


def run(args: argparse.Namespace) -> int:
    """Write the walks and tune in two stages, or go on where an earlier run ended.

    Raises:
        ConfigError: out holds something that is no checkpoint.
    """
    if args.out.exists() and not (args.out / "config.json").is_file() and any(args.out.iterdir()):
        raise ConfigError(f"--out {args.out} holds something that is no checkpoint; choose another folder")
    data, start = args.work / "data", args.start
    _write_walks(args, data, "walks", args.walks)
    for stage, steps in ((LOOK, args.look_steps), (WALK, args.walk_steps)):
        if steps:
            out = args.work / f"{stage}-{args.walks}-{steps}"
            start = _finetune([records_path(data, stage)], start, out, args, steps)
    records = [records_path(data, WALK)]
    for number in range(1, args.rounds + 1):
        first, name = number * _ROUND_WALKS, f"round-{number}-{args.round_walks}"
        led = args.work / f"{name}-of-{Path(start).name}"
        leader = partial(ModelChooser, start, threads=1)
        _write_walks(args, led, f"walks of round {number}", args.round_walks, first, leader)
        records.append(records_path(led, WALK, first))
        start = _finetune(
            records, start, args.work / f"{name}-{args.round_steps}", args, args.round_steps, ["--lr", _ROUND_LR]
        )
    _publish(Path(start), args.out)
    made = ("walks", "look_steps", "walk_steps", "rounds", "round_walks", "round_steps")
    print(json.dumps({"checkpoint": str(args.out)} | {name: getattr(args, name) for name in made}))
    return 0


def _write_walks(
    args: argparse.Namespace,
    folder: Path,
    name: str,
    num_walks: int,
    first: int = 0,
    leader: Callable[[], Chooser] | None = None,
) -> None:
    px = open_checkpoint(find_checkpoint(args.start)).spec.vision.image_px
    with StepProgress([name]) as progress:
        on_walk = progress.counter(name, num_walks, count_walks(folder, num_walks, first))
        write_walks(
            folder,
            num_walks,
            image_px=px,
            first=first,
            num_workers=args.workers,
            open_leader=leader,
            on_walk=on_walk,
        )


def _finetune(
    records: Sequence[Path], start: str, out: Path, args: argparse.Namespace, steps: int, more: Sequence[str] = ()
) -> str:
    """Tune a checkpoint, or go on with that, and return the folder of the tuned one."""
    if not (out / "config.json").is_file():
        parser = argparse.ArgumentParser()
        finetune.add_arguments(parser)
        words = [*map(str, records), "--checkpoint", start, "--out", str(out), *_HOW, *_MORE]
        finetune.run(parser.parse_args([*words, "--steps", str(steps), "--batch", str(args.batch), *more]))
    return str(out)


def _publish(tuned: Path, out: Path) -> None:
    """Copy a tuned checkpoint without the state of its run."""
    shutil.copytree(tuned, out, ignore=shutil.ignore_patterns(RUN_FOLDER), dirs_exist_ok=True)
