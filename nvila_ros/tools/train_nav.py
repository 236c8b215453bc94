"""`nvila train-nav`: nvila-tiny-nav, which follows instructions in rooms; made of nvila-tiny by `nvila finetune`.

Three steps, each gone on with when the verb is run again: walks of a follower are written as conversations; the model
learns to choose the next step from the current frame alone; and then from the eight frames that it is asked about. More
walks or more steps lengthen the recipe: a larger --walk-steps begins the last stage anew from the one before.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from nvila_ros.errors import ConfigError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools import finetune
from nvila_ros.tools.options import positive
from nvila_ros.tools.step_progress import StepProgress
from nvila_ros.training.finetuning.results import RUN_FOLDER
from nvila_ros.training.nav_data import LOOK, RECORDS, WALK, count_walks, write_walks

_HOW = ("--tower", "layernorm", "--tower-lr-ratio", "2", "--llm", "full", "--lr", "1e-3", "--warmup", "0.05")
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
    parser.add_argument("--look-steps", type=positive, default=2000, metavar="N", help="of one frame (default: 2000)")
    parser.add_argument(
        "--walk-steps", type=positive, default=3000, metavar="N", help="of eight frames (default: 3000)"
    )
    parser.add_argument("--batch", type=positive, default=8, metavar="N", help="records of a step (default: 8)")
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="processes that walk (default: 2)")


def run(args: argparse.Namespace) -> int:
    """Write the walks and tune in two stages, or go on where an earlier run ended.

    Raises:
        ConfigError: out holds something that is no checkpoint.
    """
    if args.out.exists() and not (args.out / "config.json").is_file() and any(args.out.iterdir()):
        raise ConfigError(f"--out {args.out} holds something that is no checkpoint; choose another folder")
    data = args.work / "data"
    px = open_checkpoint(find_checkpoint(args.start)).spec.vision.image_px
    with StepProgress(["walks"]) as progress:
        on_walk = progress.counter("walks", args.walks, count_walks(data, args.walks))
        write_walks(data, args.walks, image_px=px, num_workers=args.workers, on_walk=on_walk)
    start = args.start
    for stage, steps in ((LOOK, args.look_steps), (WALK, args.walk_steps)):
        out = args.work / f"{stage}-{args.walks}-{steps}"
        if not (out / "config.json").is_file():
            _finetune(data / RECORDS[stage], start, out, ["--steps", str(steps), "--batch", str(args.batch)])
        start = str(out)
    _publish(Path(start), args.out)
    print(
        json.dumps(
            {
                "checkpoint": str(args.out),
                "walks": args.walks,
                "look_steps": args.look_steps,
                "walk_steps": args.walk_steps,
            }
        )
    )
    return 0


def _finetune(records: Path, start: str, out: Path, options: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    finetune.add_arguments(parser)
    words = [str(records), "--media", str(records.parent), "--checkpoint", start, "--out", str(out)]
    finetune.run(parser.parse_args([*words, *_HOW, *_MORE, *options]))


def _publish(tuned: Path, out: Path) -> None:
    """Copy a tuned checkpoint without the state of its run."""
    shutil.copytree(tuned, out, ignore=shutil.ignore_patterns(RUN_FOLDER), dirs_exist_ok=True)
