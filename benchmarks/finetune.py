"""Ways to fine-tune, side by side: memory, speed and what is learned where the tower must change.

nvila-tiny knows the synthetic world in white light. Here it learns to see it under a deep blue lamp, which leaves a
fifth of red and a third of green: the same questions, but what the tower makes of a frame must change. Each way of
tuning takes the same steps over the same samples, with three seeds for their choice, their order and the adapters; held
out are scenes that no run learns from. An answer is right if all of its tokens are the likeliest, as greedy decoding
would say it.

With `--shapes` also a published model's, of random weights: what a step of one sample of 448 pixels and 300 tokens
takes in memory and time. Prints tables and, last, one JSON line.

    .venv/bin/python -m benchmarks.finetune --device cpu
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.table import Table

from benchmarks.finetune_measure import Measured, measured
from benchmarks.finetune_samples import CONTEXT, HELD_OUT_BASE, MODEL, SEED_BASE, Numbers, film, random_model, sample_of
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.variants import VARIANTS
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.tools.options import positive, print_json, wide_console, words
from nvila_ros.training.conversations.encoding import EncodedSample
from nvila_ros.training.conversations.forward import learned_hidden
from nvila_ros.training.conversations.packing import join, pack
from nvila_ros.training.finetuning.learner import in_precision
from nvila_ros.training.finetuning.run import TuningData, TuningRun
from nvila_ros.training.finetuning.settings import BF16, FP32, FULL, Settings
from nvila_ros.training.finetuning.step_batches import StepBatch
from nvila_ros.training.token_labels import IGNORE

WAYS = ("lora/lora", "layernorm/lora", "full/lora", "lora/qlora", "layernorm/qlora", "full/full", "frozen/lora")
"""Tower and language model, in the order of the paper's table; the last shows what the tower's tuning is worth."""
ROW_TOKENS = 2048
WARM_STEPS = 3  # left out of the speed
SHAPE_STEPS = 10


def main() -> int:
    """Run the benchmark; returns the exit code."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    importlib.import_module("peft")  # before anything is measured: it is large
    figures: dict[str, Any] = {
        "benchmark": "finetune",
        "device": device_name(args.device),
        "precision": precision(args),
    }
    console = wide_console()
    if not args.only_shapes:
        figures |= measure_tiny(args)
        console.print(as_table(figures["ways"], f"{MODEL}, {args.steps} steps of {args.batch}, {figures['device']}"))
        console.print(f"untuned: {figures['untuned']:.3f}")
    if args.shapes:
        figures["shapes"] = {"model": args.shapes, "ways": measure_shapes(args)}
        console.print(
            as_table(figures["shapes"]["ways"], f"{args.shapes}, random weights, 1 sample of {CONTEXT} tokens")
        )
    print_json(figures)
    return 0


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--ways", type=words, default=WAYS, metavar="T/L,T/L", help="tower and language model")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--steps", type=positive, default=100, metavar="N", help="default: %(default)s")
    parser.add_argument("--batch", type=positive, default=32, metavar="N", help="images of a step (default: 32)")
    parser.add_argument("--turns", type=positive, default=4, metavar="N", help="questions of an image (default: 4)")
    parser.add_argument("--questions", type=positive, default=1500, metavar="N", help="held out (default: 1500)")
    parser.add_argument("--lr", type=float, default=1e-3, help="of the language model (default: %(default)s)")
    parser.add_argument("--ratio", type=float, default=5.0, help="a whole tower's is so many times lower (default: 5)")
    parser.add_argument(
        "--small-ratio", type=float, default=1.0, help="that of norms or adapters, which need more (default: 1)"
    )
    parser.add_argument("--shapes", choices=sorted(VARIANTS), help="measure these too, with random weights")
    parser.add_argument("--only-shapes", action="store_true", help="measure nothing else")
    parser.add_argument("--threads", type=positive, default=2, help="torch's (default: 2)")
    parser.add_argument("--workers", type=positive, default=multiprocessing.cpu_count(), help="that film the samples")
    return parser.parse_args()


def precision(args: argparse.Namespace) -> str:
    """Return the precision of the work."""
    return BF16 if args.device == "cuda" else FP32


def device_name(kind: str) -> str:
    """Return what the figures were measured on."""
    return torch.cuda.get_device_name() if kind == "cuda" else f"{torch.get_num_threads()} threads of a CPU"


def measure_tiny(args: argparse.Namespace) -> dict[str, Any]:
    """Tune the embedded model in every way, with every seed."""
    started_s = time.monotonic()
    needed = 2 * args.steps * args.batch  # each seed learns from a half of its own
    with multiprocessing.get_context("spawn").Pool(args.workers, cv2.setNumThreads, (1,)) as pool:
        samples = pool.map(partial(film, num_turns=args.turns), range(SEED_BASE, SEED_BASE + needed), 64)
        held_out = pool.map(partial(film, num_turns=1), range(HELD_OUT_BASE, HELD_OUT_BASE + args.questions), 64)
    print(f"filmed {needed + args.questions} samples in {time.monotonic() - started_s:.0f} s", flush=True)
    checkpoint = open_checkpoint(find_checkpoint(MODEL))
    untuned = accuracy(load_torch_model(checkpoint).to(args.device), held_out, settings_of(args, "frozen/frozen", 0))
    ways: dict[str, Any] = {}
    for way in args.ways:
        runs = []
        for seed in range(args.seeds):
            chosen = np.random.default_rng(seed).permutation(needed)[: needed // 2]
            runs.append(tune(settings_of(args, way, seed), chosen, samples, held_out, args.device))
        ways[way] = summarize(runs)
        print(f"{way}: {ways[way]}", flush=True)
    return {"model": MODEL, "steps": args.steps, "batch": args.batch, "lr": args.lr} | {
        "ratio": args.ratio,
        "small_ratio": args.small_ratio,
        "seeds": args.seeds,
        "questions": args.questions,
        "untuned": untuned,
        "ways": ways,
    }


def settings_of(args: argparse.Namespace, way: str, seed: int) -> Settings:
    """Return the settings of a run."""
    tower, llm = way.split("/")
    return Settings(
        tower=tower,
        llm=llm,
        lr=args.lr,
        tower_lr_ratio=args.ratio if tower == FULL else args.small_ratio,
        num_steps=args.steps,
        batch=args.batch,
        row_tokens=ROW_TOKENS,
        precision=precision(args),
        seed=seed,
    )


def tune(
    settings: Settings,
    chosen: np.ndarray,
    samples: Sequence[EncodedSample],
    held_out: Sequence[EncodedSample],
    device: str,
) -> Measured:
    """Take all steps of one run, then ask the held-out questions."""
    with measured(device) as found, tempfile.TemporaryDirectory() as folder:
        model = load_torch_model(open_checkpoint(find_checkpoint(MODEL)))
        run = new_run(model, [samples[k] for k in chosen], settings, Path(folder), device)
        found.begin(run)
        for step in range(run.num_steps):
            found.time(lambda step=step, batch=run.batches[step]: run.take_step(step, batch))
    found.accuracy = accuracy(run.model, held_out, settings)
    return found


def new_run(model: Nvila, samples: Sequence[EncodedSample], settings: Settings, folder: Path, device: str) -> TuningRun:
    """Return a run over samples that lie encoded in memory."""
    data = TuningData([Numbers(len(samples))])
    return TuningRun(
        model, lambda sample: samples[int(sample.name)], data, settings, folder, device=torch.device(device)
    )


@torch.no_grad()
def accuracy(model: Nvila, samples: Sequence[EncodedSample], settings: Settings) -> float:
    """Return the share of answers of which every token is the likeliest."""
    model.eval()
    num_right = 0
    for group in pack(enumerate(samples), ROW_TOKENS):
        row = join([sample for _, sample in group])
        with in_precision(settings, model.llm.model["embed_tokens"].weight.device):
            likeliest = model.llm.head(learned_hidden(model, row)).argmax(-1).cpu().numpy()
        is_missed = likeliest != row.labels_L[row.labels_L != IGNORE]
        num_right += int((np.bincount(row.learned_owners, is_missed, minlength=len(group)) == 0).sum())
    return num_right / len(samples)


def measure_shapes(args: argparse.Namespace) -> dict[str, Any]:
    """Take steps on a published model's shapes in every way."""
    spec = VARIANTS[args.shapes].spec
    samples = [sample_of(spec)]
    batch = StepBatch((join(samples),), ())
    ways = {}
    for way in args.ways:
        with measured(args.device) as found, tempfile.TemporaryDirectory() as folder:
            run = new_run(
                random_model(spec, args.device), samples, settings_of(args, way, 0), Path(folder), args.device
            )
            found.begin(run)
            for step in range(SHAPE_STEPS):
                found.time(lambda step=step, run=run: run.take_step(step, batch))
            del run
        ways[way] = summarize([found])
        print(f"{args.shapes} {way}: {ways[way]}", flush=True)
    return ways


def summarize(runs: Sequence[Measured]) -> dict[str, Any]:
    """Return the figures of one way: means over its runs, of accuracy also the spread, of steps the median."""
    accuracies = [run.accuracy for run in runs]
    steps_s = [step_s for run in runs for step_s in run.step_s[WARM_STEPS:] or run.step_s]
    return {
        "learned": runs[0].learned,
        "peak_bytes": max(run.peak_bytes for run in runs),
        "steps_per_s": 1 / statistics.median(steps_s),
        "accuracy": statistics.fmean(accuracies),
        "spread": statistics.stdev(accuracies) if len(runs) > 1 else 0.0,
    }


def as_table(ways: dict[str, Any], title: str) -> Table:
    """Return a row for each way."""
    table = Table("tower", "language model", "learned", "MiB", "steps/s", "right", title=title)
    for column in table.columns[2:]:
        column.justify = "right"
    for way, row in ways.items():
        right = f"{row['accuracy']:.3f} +- {row['spread']:.3f}" if row["accuracy"] else "-"
        figures = (f"{row['learned']:,}", f"{row['peak_bytes'] / 2**20:,.0f}", f"{row['steps_per_s']:.2f}", right)
        table.add_row(*way.split("/"), *figures)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
