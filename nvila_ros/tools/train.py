"""`nvila train-tiny`: an embedded checkpoint, trained on the synthetic world."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch

from nvila_ros.errors import ConfigError
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.options import positive, share, whole, words
from nvila_ros.tools.step_progress import StepProgress
from nvila_ros.training.ranks import local_device
from nvila_ros.training.recipes import RECIPES
from nvila_ros.training.train_tiny import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument(
        "--model",
        choices=RECIPES,
        default="nvila-tiny",
        help="nvila-tiny from nothing, or a sibling from nvila-tiny (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the checkpoint is written")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keeps the state: run again to go on")
    parser.add_argument("--start", type=Path, metavar="DIR", help="checkpoint that the first of --stages starts with")
    parser.add_argument("--stages", type=words, metavar="S,S", help="some of the recipe's, with --start")
    parser.add_argument("--seed", type=whole, default=0, help="of what starts at random (default: %(default)s)")
    parser.add_argument(
        "--workers", type=positive, default=2, metavar="N", help="processes that draw scenes (default: 2)"
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device, help="default here: %(default)s")
    parser.add_argument(
        "--steps-share",
        type=share,
        default=1.0,
        metavar="S",
        help="share of the steps, to try the whole recipe quickly (default: 1)",
    )


def run(args: argparse.Namespace) -> int:
    """Train all stages, or go on where an earlier run ended.

    Raises:
        ConfigError: out is no folder to write to, or work holds another run's state.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    local_device(args.device)
    is_replaced = (args.out / "config.json").is_file()
    if args.out.exists() and not is_replaced and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ConfigError(
            f"--out {args.out} holds something that is no checkpoint; it would be replaced, choose another"
        )
    if (args.start is None) != (args.stages is None):
        raise ConfigError(
            "--start and --stages go together: the stages that are left, and the checkpoint they start with"
        )
    recipe = RECIPES[args.model]
    if args.start is not None:
        recipe = recipe.continued(find_checkpoint(str(args.start)), args.stages)
    recipe = recipe.shortened(args.steps_share)
    with StepProgress([stage.name for stage in recipe.stages]) as progress:
        train(
            recipe,
            args.out,
            args.work,
            seed=args.seed,
            num_workers=args.workers,
            device=args.device,
            on_progress=progress.advance,
        )
    return 0
