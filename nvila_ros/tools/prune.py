"""`nvila prune`: keep the samples of data sets that are worth learning from, by DeltaLoss.

In: conversations and two checkpoints of one tokenizer. Out: a folder with the scores, the kept samples, a histogram.
"""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from nvila_ros.files import exclusive_lock
from nvila_ros.models.build import fingerprint
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.charts import draw_scores, save_chart
from nvila_ros.tools.options import positive, print_json, share, wide_console
from nvila_ros.tools.prune_report import as_dict, example_table, group_table
from nvila_ros.tools.records import add_media_options, open_sources
from nvila_ros.tools.step_progress import StepProgress
from nvila_ros.training.conversations.files import SampleSource
from nvila_ros.training.pruning import SCORES, Scorer, check_tokenizers
from nvila_ros.training.ranks import joined, local_device
from nvila_ros.training.score_files import ScoreFolder
from nvila_ros.training.score_run import ScoringRun, choose, gather, score_blocks, write_kept

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument(
        "data", nargs="+", type=Path, metavar="DATA", help="conversations in JSON or JSON lines, or folders of such"
    )
    parser.add_argument("--large", required=True, metavar="CKPT", help="the larger model")
    parser.add_argument("--small", required=True, metavar="CKPT", help="the smaller model, of the same tokenizer")
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="run again to go on, or to keep another share"
    )
    parser.add_argument("--keep", type=share, default=0.5, metavar="S", help="share of each sub-dataset (default: 0.5)")
    parser.add_argument(
        "--by", default="", metavar="FIELD", help="field that names a sub-dataset; else each file is one"
    )
    parser.add_argument(
        "--score", choices=SCORES, default=SCORES[0], help="over an answer's tokens (default: %(default)s)"
    )
    add_media_options(parser)
    parser.add_argument(
        "--block", type=positive, default=256, metavar="N", help="samples of a score file (default: 256)"
    )
    parser.add_argument("--row-tokens", type=positive, default=4096, metavar="N", help="read at once (default: 4096)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of weights and work (default: %(default)s)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device, help="default here: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")


def run(args: argparse.Namespace) -> int:
    """Score what is not scored yet, then keep the best of each sub-dataset.

    Raises:
        NvilaError: a sample, a checkpoint or the folder is not acceptable.
    """
    sources = open_sources(args.data, args.media, args.by, allow_outside=args.allow_outside, window=args.pixel_window)
    with joined() as ranks:
        run = _prepare(args, sources)
        folder = ScoreFolder(args.out)
        if ranks.is_first:
            folder.begin(_describe(args, sources))
        with exclusive_lock(args.out) if ranks.is_first else nullcontext():
            ranks.wait()
            num_blocks = len(range(ranks.rank, run.num_blocks, ranks.world_size))
            with StepProgress(("blocks",), is_shown=ranks.is_first) as progress:
                on_block = progress.counter("blocks", num_blocks)
                score_blocks(run, folder, rank=ranks.rank, world_size=ranks.world_size, on_block=on_block)
            ranks.wait()
            if ranks.is_first:
                _finish(args, run, folder)
    return 0


def _prepare(args: argparse.Namespace, sources: tuple[SampleSource, ...]) -> ScoringRun:
    large, small = (
        Scorer(open_checkpoint(find_checkpoint(name)), dtype=DTYPES[args.dtype], device=local_device(args.device))
        for name in (args.large, args.small)
    )
    check_tokenizers(large, small)
    return ScoringRun(
        sources=sources,
        large=large,
        small=small,
        block_size=args.block,
        row_tokens=args.row_tokens,
        is_strict=not args.skip_bad,
    )


def _describe(args: argparse.Namespace, sources: tuple[SampleSource, ...]) -> dict[str, Any]:
    """Return what decides the scores of a run, to be recorded in its folder."""
    return {
        "data": [[source.name, source.identity()] for source in sources],  # blocks are by position
        "large": fingerprint(open_checkpoint(find_checkpoint(args.large))),
        "small": fingerprint(open_checkpoint(find_checkpoint(args.small))),
        "by": args.by,
        "block": args.block,
        "row_tokens": args.row_tokens,
        "dtype": args.dtype,
    }


def _finish(args: argparse.Namespace, run: ScoringRun, folder: ScoreFolder) -> None:
    scores = gather(run, folder)
    delta = scores.delta(args.score)
    is_kept = choose(scores, args.score, args.keep)
    paths = write_kept(run, scores, is_kept, args.out / "kept")
    save_chart(args.out / "histogram.png", draw_scores(scores, delta, is_kept))
    report = as_dict(scores, delta, is_kept)
    if not args.json:
        console = wide_console()
        console.print(group_table(report), example_table(run, scores, delta))
    print_json({**report, "score": args.score, "keep": args.keep, "files": {name: str(p) for name, p in paths.items()}})
