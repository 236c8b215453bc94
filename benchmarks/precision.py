"""A plain checkpoint on a CPU: in float32, and rounded to eight or four bits while it is read.

Writes a checkpoint of random weights with a published model's shapes, loads it in a fresh process for each precision,
and asks about a clip of eight frames: seconds until it is loaded, seconds to the first token, decode speed and peak
memory. Then asks nvila-tiny the questions of its suite in each precision, and counts the answers that are as those in
float32. Prints a table and, last, one JSON line.

    .venv/bin/python -m benchmarks.precision --variant NVILA-Lite-2B --questions 400
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.load import write_random
from benchmarks.process_usage import peak_resident_bytes
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.variants import VARIANTS
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.loading import find_checkpoint, load_engine
from nvila_ros.runtime.rounded import BITS, FLOAT
from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from nvila_ros.tools.options import positive, print_json
from nvila_ros.types import Frame, Query
from nvila_ros.world.questions import EVAL_KINDS, eval_case
from nvila_ros.world.rendering import render

EMBEDDED = "nvila-tiny"
GIB = 1 << 30
NUM_FRAMES, NUM_TOKENS = 8, 16
SEED_BASE = 20_000


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=VARIANTS, default="NVILA-Lite-2B")
    parser.add_argument("--precisions", nargs="+", choices=(FLOAT, *BITS), default=[FLOAT, *BITS])
    parser.add_argument("--questions", type=positive, default=200, help="to nvila-tiny (default: %(default)s)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_random(VARIANTS[args.variant].spec, Path(folder))
        figures = {precision: in_process(measure, folder, precision) for precision in args.precisions}
    answers = {
        precision: in_process(ask_embedded, precision, args.questions) for precision in {FLOAT, *args.precisions}
    }
    for precision, row in figures.items():
        same = sum(a == b for a, b in zip(answers[precision], answers[FLOAT], strict=True))
        row["same_answers"] = round(same / args.questions, 4)
    Console(highlight=False, width=110).print(as_table(args.variant, figures))
    print_json({"benchmark": "precision", "variant": args.variant, "questions": args.questions, **figures})
    return 0


def in_process(act: Any, *arguments: Any) -> Any:
    """Return what a function returns in a process that nothing else was loaded into."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(act, *arguments).result()


def measure(folder: str, precision: str) -> dict[str, Any]:
    """Load the checkpoint and ask about a clip twice, the second time with other frames."""
    tokenizer = ChatTokenizer.from_folder(open_checkpoint(find_checkpoint(EMBEDDED)).tokenizer_folder)
    started_s = time.monotonic()
    engine = load_engine(open_checkpoint(folder), "cpu", precision=precision)
    loaded_s = time.monotonic() - started_s
    model = VisionLanguageModel(engine, tokenizer, backend="cpu")
    first, second = (model.answer(clip_query(), noise(seed)) for seed in range(2))
    steps, decode_s = second.counts.num_answer_tokens - 1, second.timings.decode_s
    return {
        "name": engine.precision,
        "load_s": round(loaded_s, 1),
        "first_ttft_s": round(first.timings.ttft_s, 2),
        "ttft_s": round(second.timings.ttft_s, 2),
        "decode_tok_s": round(steps / decode_s, 1) if steps > 0 else None,
        "peak_gib": round(peak_resident_bytes() / GIB, 2),
    }


def clip_query() -> Query:
    """Return a question about a clip whose answer has a bounded length."""
    return Query(query_id="clip", question="What happens?", num_frames=NUM_FRAMES, max_tokens=NUM_TOKENS)


def noise(seed: int) -> list[Frame]:
    """Return frames of noise that no other seed shares."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (NUM_FRAMES, 480, 640, 3), np.uint8)
    return [Frame(image=image, stamp_ns=(seed * NUM_FRAMES + i) * 10**8) for i, image in enumerate(images)]


def ask_embedded(precision: str, num_questions: int) -> list[str]:
    """Return nvila-tiny's answers to the first questions of every kind of its suite in turn."""
    model = load_model(EMBEDDED, backend="cpu", precision=precision, threads=1)
    cases = ((kind, eval_case(kind, index)) for index in itertools.count(SEED_BASE) for kind in EVAL_KINDS)
    texts = []
    for kind, case in itertools.islice(cases, num_questions):
        frames = [Frame(image=render(case.scene, t_s, 640, 480), stamp_ns=round(t_s * 1e9)) for t_s in case.times_s]
        query = Query(query_id=kind, question=case.question.text, num_frames=len(frames), max_tokens=16)
        texts.append(model.answer(query, frames).text)
    return texts


def as_table(variant: str, figures: dict[str, dict[str, Any]]) -> Table:
    """Return the figures as a table, first tokens also as a share of those in float32."""
    table = Table("precision", "loaded s", "first token s", "of fp32", "tokens/s", "peak GiB", "nvila-tiny as fp32")
    table.title = f"{variant}, {NUM_FRAMES} frames"
    for row in figures.values():
        share = f"{row['ttft_s'] / figures[FLOAT]['ttft_s']:.2f}" if FLOAT in figures else ""
        cells = (
            row["load_s"],
            row["ttft_s"],
            share,
            row["decode_tok_s"],
            row["peak_gib"],
            row["same_answers"],
        )
        table.add_row(row["name"], *map(str, cells))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
