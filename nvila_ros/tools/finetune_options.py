"""The options of `nvila finetune`, and the settings that they make."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch

from nvila_ros.tools.options import positive, whole, words
from nvila_ros.tools.records import add_media_options
from nvila_ros.training.finetuning.settings import BF16, FP32, LLM_MODES, PRECISIONS, TOWER_MODES, Settings

_DEFAULTS = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument(
        "data", nargs="+", type=Path, metavar="DATA", help="conversations in JSON or JSON lines, or folders of such"
    )
    parser.add_argument("--checkpoint", required=True, metavar="CKPT", help="checkpoint to tune")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="run again to go on")
    add_media_options(parser)
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


def read_settings(args: argparse.Namespace) -> Settings:
    """Return what the options chose.

    Raises:
        ConfigError: they do not go together.
    """
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
    """Read numbers > 0 separated by commas, each once."""
    found = tuple(dict.fromkeys(above_zero(word) for word in words(text)))
    if not found:
        raise argparse.ArgumentTypeError(f"expected ratios separated by commas, got {text!r}")
    return found


def _number(text: str, wanted: str, fits: Callable[[float], bool]) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and fits(number)):
        raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
    return number
