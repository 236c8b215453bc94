"""Scale, then compress: what more pixels and more frames cost and what they answer, as in the paper's Tables 1 and 2.

One checkpoint, trained for all of it, is asked the same questions about the same scenes while its config varies: an
image as one tile, or at three scales merged at each of them; a clip of more or fewer frames, averaged over none, 4 or
8. Prints two tables (visual tokens, median times of the prefill and to the first token, accuracy) and, last, one JSON
line. Visual tokens are the projector's; a newline follows each image and each averaged frame.

    .venv/bin/python -m benchmarks.scale_compress --questions 300
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.loading import find_checkpoint, load_engine
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.tools.options import positive, print_json, whole
from nvila_ros.tools.suite_scores import ask_case
from nvila_ros.training.save import save_checkpoint
from nvila_ros.training.tiny_scale import narrow
from nvila_ros.types import Answer
from nvila_ros.world.questions import EvalCase, is_correct
from nvila_ros.world.scale_questions import CLIP_KINDS, SMALL_KINDS, eval_scale_case

CLIPS = ((4, 1), (16, 4), (32, 8), (8, 1), (32, 4), (16, 1))
"""Frames of a clip, and how many of them are averaged; rows of as many visual tokens stand together."""
TABLE_WIDTH = 100


@dataclass(frozen=True, slots=True)
class ViewVariant:
    """One row: how images or clips are shown; num_frames is 0 for images."""

    name: str
    model: VisionLanguageModel
    num_frames: int = 0
    answers: dict[str, list[tuple[EvalCase, Answer]]] = field(default_factory=dict)

    def ask(self, kind: str, index: int) -> None:
        """Ask one case of the suite and keep the answer."""
        case = eval_scale_case(kind, index)
        if self.num_frames:
            times_s = np.linspace(case.times_s[0], case.times_s[-1], self.num_frames)
            case = dataclasses.replace(case, times_s=tuple(times_s.tolist()))
        self.answers.setdefault(kind, []).append((case, ask_case(self.model, case, f"{kind}-{index}")))

    def accuracy(self, kind: str) -> float:
        """Share of the questions of a kind that were answered right."""
        return statistics.fmean(is_correct(case.question, answer.text) for case, answer in self.answers[kind])

    def as_dict(self) -> dict[str, Any]:
        """Return the row's numbers; times in seconds."""
        answers = [answer for pairs in self.answers.values() for _, answer in pairs]
        return {
            "name": self.name,
            "visual_tokens": max(answer.counts.num_visual_tokens for answer in answers),
            "prefill_s": statistics.median(answer.timings.prefill_s for answer in answers),
            "ttft_s": statistics.median(answer.timings.ttft_s for answer in answers),
            **{kind: self.accuracy(kind) for kind in self.answers},
        }


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="nvila-tiny-scale", help="folder, or name of an embedded one")
    parser.add_argument("--questions", type=positive, default=100, metavar="N", help="per kind (default: 100)")
    parser.add_argument("--threads", type=whole, default=0, help="of the backend, 0 for its own choice")
    args = parser.parse_args()
    checkpoint = open_checkpoint(find_checkpoint(args.checkpoint))
    tables: dict[str, list[dict[str, Any]]] = {}
    for title, kinds, variants in (
        ("images", tuple(SMALL_KINDS), list(image_variants(checkpoint, args.threads))),
        ("clips", CLIP_KINDS, list(clip_variants(checkpoint, args.threads))),
    ):
        for variant in variants:
            variant.model.warm_up()
        for kind in kinds:
            for index in range(args.questions):
                for variant in variants:  # in turns, so that what else the machine does hits all alike
                    variant.ask(kind, index)
        tables[title] = [variant.as_dict() for variant in variants]
        Console(highlight=False, width=TABLE_WIDTH).print(as_table(title, kinds, tables[title]))
    print_json({"benchmark": "scale_compress", "model": checkpoint.spec.name, "questions": args.questions, **tables})
    return 0


def image_variants(checkpoint: Checkpoint, threads: int) -> Iterator[ViewVariant]:
    """Yield the rows of images: one tile, then all scales merged at each scale."""
    with tempfile.TemporaryDirectory() as folder:
        yield ViewVariant("1 tile", load(single_tile(checkpoint, Path(folder) / checkpoint.spec.name), threads))
    num_scales = len(checkpoint.spec.scales)
    for index, side in enumerate(checkpoint.spec.scales):
        spec = dataclasses.replace(checkpoint.spec, merge_scale=index)
        yield ViewVariant(f"{num_scales} scales at {side}", load(dataclasses.replace(checkpoint, spec=spec), threads))


def clip_variants(checkpoint: Checkpoint, threads: int) -> Iterator[ViewVariant]:
    """Yield the rows of clips."""
    for num_frames, pool in CLIPS:
        spec = dataclasses.replace(checkpoint.spec, video_pools=((pool, 1, 1),))
        model = load(dataclasses.replace(checkpoint, spec=spec), threads)
        yield ViewVariant(f"{num_frames} frames, x{pool}", model, num_frames)


def single_tile(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Return the same model without scales, as a checkpoint in `folder`: it says of one tile what the other does."""
    spec = checkpoint.spec
    projector = dataclasses.replace(spec.projector, in_width=spec.vision.width)
    narrow_spec = dataclasses.replace(spec, image_mode="resize", scales=(), projector=projector)
    save_checkpoint(narrow(load_torch_model(checkpoint), narrow_spec), checkpoint.tokenizer_folder, folder)
    return open_checkpoint(folder)


def load(checkpoint: Checkpoint, threads: int) -> VisionLanguageModel:
    """Load a checkpoint for ONNX Runtime, as the node does."""
    engine = load_engine(checkpoint, "onnxruntime", threads)
    return VisionLanguageModel(engine, ChatTokenizer.from_folder(checkpoint.tokenizer_folder), backend="onnxruntime")


def as_table(title: str, kinds: Sequence[str], rows: Sequence[dict[str, Any]]) -> Table:
    """Return the rows as a table; times in milliseconds."""
    table = Table(title, "visual tokens", "prefill ms", "TTFT ms", *kinds)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        times_ms = [f"{1e3 * row[name]:.1f}" for name in ("prefill_s", "ttft_s")]
        accuracies = [f"{row[kind]:.3f}" for kind in kinds]
        table.add_row(row["name"], str(row["visual_tokens"]), *times_ms, *accuracies)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
