"""What quantization costs in answers: every scheme asked the same held-out questions, each held against fp32.

Calibrates on scenes that are not asked about, as `nvila build` does, quantizes, and simulates what a quantized engine
computes, so this says nothing about speed. Prints a table (accuracy by kind; `equal` is the share of answers that are
fp32's to the letter) and, last, one JSON line.

    .venv/bin/python -m benchmarks.quantize --questions 167
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nvila_ros.builds.weights import world_samples
from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.models.quantized import Weight
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.quantization.calibration import Calibration, calibrate
from nvila_ros.quantization.options import DecoderOptions, TowerOptions
from nvila_ros.quantization.quantize import keep_part, quantize_decoder, quantize_tower
from nvila_ros.quantization.simulate import SimulatedEngine
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.tools.options import positive, print_json, whole
from nvila_ros.tools.suite_scores import film_case
from nvila_ros.types import Query
from nvila_ros.world.questions import EVAL_CLIP_FRAMES, EVAL_KINDS, eval_case, is_correct

FP32, FP16 = TowerOptions(precision="fp32"), TowerOptions(precision="fp16")
TOKEN, TENSOR = TowerOptions(), TowerOptions(activations="per_tensor")
PLAIN = DecoderOptions(precision="fp32")
AWQ_CLIP = DecoderOptions()
SCHEMES: dict[str, tuple[TowerOptions, DecoderOptions]] = {
    "fp32": (FP32, PLAIN),
    "fp16": (FP16, DecoderOptions(precision="fp16")),
    "w8a8 token": (TOKEN, PLAIN),
    "w8a8 tensor": (TENSOR, PLAIN),
    "w8a8 tensor, raw": (TowerOptions(activations="per_tensor", smooth=None), PLAIN),
    "w4 nearest": (FP32, DecoderOptions(awq=False, clip=False)),
    "w4 awq": (FP32, DecoderOptions(clip=False)),
    "w4 awq+clip": (FP32, AWQ_CLIP),
    "w4 all, head": (FP32, DecoderOptions(is_head_int4=True)),
    "w4 all, g64": (FP32, DecoderOptions(group_size=64)),
    "both, token": (TOKEN, AWQ_CLIP),
    "both, tensor": (TENSOR, AWQ_CLIP),
}
"""Tower and decoder of each row; `raw` is not smoothed, `all` is AWQ and clip, `g64` has groups of 64 inputs."""
JUDGED = "both, token"
"""The scheme that the JSON line is about."""


@dataclass(frozen=True, slots=True)
class SchemeResult:
    """One scheme's answers, by kind, and whether they are right."""

    name: str
    model: VisionLanguageModel
    answers: dict[str, list[str]] = field(default_factory=dict)
    is_right: dict[str, list[bool]] = field(default_factory=dict)

    def accuracy(self, *kinds: str) -> float:
        """Share of right answers over some kinds, or over all."""
        return statistics.fmean(right for kind in kinds or self.is_right for right in self.is_right[kind])

    def equal_answers(self, other: SchemeResult) -> float:
        """Share of answers that are another's to the letter."""
        return statistics.fmean(
            mine == theirs
            for kind, answers in self.answers.items()
            for mine, theirs in zip(answers, other.answers[kind], strict=True)
        )


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="nvila-tiny", help="folder, or name of an embedded one")
    parser.add_argument("--questions", type=positive, default=50, metavar="N", help="per kind (default: 50)")
    parser.add_argument("--samples", type=positive, default=64, metavar="N", help="to calibrate on (default: 64)")
    parser.add_argument(
        "--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES), metavar="S", help="some of them"
    )
    parser.add_argument("--threads", type=whole, default=0, help="of torch, 0 for its own choice")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    checkpoint = open_checkpoint(find_checkpoint(args.checkpoint))
    tokenizer = ChatTokenizer.from_folder(checkpoint.tokenizer_folder)
    calibration = calibrate(checkpoint, tokenizer, itertools.islice(world_samples(EVAL_CLIP_FRAMES), args.samples))
    names = list(dict.fromkeys(("fp32", *args.schemes, JUDGED)))
    models = quantize(checkpoint, calibration, [SCHEMES[name] for name in names])
    rows = [
        SchemeResult(name, load(checkpoint, tokenizer, weights)) for name, weights in zip(names, models, strict=True)
    ]
    ask(rows, args.questions)
    Console(highlight=False, width=100).print(as_table(rows))  # a pipe has 80, which would cut numbers off
    print_json({"benchmark": "quantize", "model": checkpoint.spec.name, "questions": args.questions, **as_dict(rows)})
    return 0


def quantize(
    checkpoint: Checkpoint, calibration: Calibration, schemes: Sequence[tuple[TowerOptions, DecoderOptions]]
) -> Iterator[dict[str, Weight]]:
    """Yield a whole model's weights for each scheme; a part that several share is quantized once."""

    @functools.cache
    def tower(options: TowerOptions) -> dict[str, Weight]:
        return dict(quantize_tower(checkpoint, options, calibration.tile_NCHW))

    @functools.cache
    def decoder(options: DecoderOptions) -> dict[str, Weight]:
        return dict(quantize_decoder(checkpoint, options, calibration.prompts_LD))

    for for_tower, for_decoder in schemes:
        precision = "fp16" if for_tower.precision == "fp16" else "fp32"
        yield {**tower(for_tower), **dict(keep_part(checkpoint, "mm_projector", precision)), **decoder(for_decoder)}


def load(checkpoint: Checkpoint, tokenizer: ChatTokenizer, weights: dict[str, Weight]) -> VisionLanguageModel:
    """Return a model of these weights that answers queries."""
    return VisionLanguageModel(SimulatedEngine(checkpoint.spec, weights), tokenizer, backend="simulated")


def ask(rows: Sequence[SchemeResult], num_questions: int) -> None:
    """Ask every row each question; frames are filmed once."""
    for kind in EVAL_KINDS:
        for index in range(num_questions):
            case = eval_case(kind, index)
            frames = film_case(case)
            query = Query(
                query_id=f"{kind}-{index}", question=case.question.text, num_frames=len(frames), max_tokens=16
            )
            for row in rows:
                text = row.model.answer(query, frames).text
                row.answers.setdefault(kind, []).append(text)
                row.is_right.setdefault(kind, []).append(is_correct(case.question, text))


def as_dict(rows: Sequence[SchemeResult]) -> dict[str, Any]:
    """Return the judged scheme's numbers, then every scheme's."""
    by_name = {row.name: row for row in rows}
    fp32, judged = by_name["fp32"], by_name[JUDGED]
    return {
        "scheme": JUDGED,
        "asked": sum(map(len, fp32.answers.values())),
        "accuracy_fp32": fp32.accuracy(),
        "accuracy_quant": judged.accuracy(),
        "equal_answers": judged.equal_answers(fp32),
        "schemes": {row.name: {"accuracy": row.accuracy(), "equal_answers": row.equal_answers(fp32)} for row in rows},
    }


def as_table(rows: Sequence[SchemeResult]) -> Table:
    """Return the rows as a table."""
    table = Table("scheme", *EVAL_KINDS, "overall", "equal")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        accuracies = [f"{row.accuracy(kind):.3f}" for kind in EVAL_KINDS]
        table.add_row(row.name, *accuracies, f"{row.accuracy():.4f}", f"{row.equal_answers(rows[0]):.4f}")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
