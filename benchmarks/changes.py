"""What a clip costs and answers where frames are left out that hardly differ from the last one shown.

nvila-tiny is shown 16 frames, nvila-tiny-scale 32 without averaging, of cameras that stand, pan or are noisy: all of
them; fewer, spread evenly; those that `change_threshold` leaves; and all of them with single tokens left out, closed up
and at the positions that they had. Frames are encoded before the question comes. Prints for each camera visual tokens,
the median time to the first token, the share of answers equal to those about all frames, and right answers by kind;
draws a picture where `--picture` names one; last, one JSON line.

    .venv/bin/python -m benchmarks.changes --questions 20 --picture docs/images/clip_changes.png
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks.changing.clips import CAMERAS, QUICK, clip_case, film_clip
from benchmarks.changing.single_tokens import SingleTokenEncoder, SpacedEngine
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.loading import find_checkpoint, load_engine
from nvila_ros.serving.pipeline import CacheLimits, VisionLanguageModel
from nvila_ros.tools.charts import BLUE, GRAY, ORANGE, save_chart, styled
from nvila_ros.tools.options import positive, print_json
from nvila_ros.types import Answer, Query
from nvila_ros.visual.changes import SHOW_ALL, ChangeRule
from nvila_ros.world.questions import is_correct

MODELS = {
    "nvila-tiny": (16, ("motion", "vanish", "order", f"{QUICK}order")),
    "nvila-tiny-scale": (32, ("motion", "order", f"{QUICK}order", f"{QUICK}jump")),
}
"""Frames of a clip, and kinds of question that the model was trained to answer."""
FEWER = (16, 8, 6, 4)
RULES = (ChangeRule(0.3, 4), ChangeRule(0.3, 8), ChangeRule(0.3, 16))
TOKEN_RULE = ChangeRule(0.01, 8)
LIMITS = CacheLimits(num_prefixes=0)
WHOLE = "all frames"


@dataclass(slots=True)
class ClipVariant:
    """One row of a table: how clips are shown, and what came of it."""

    name: str
    model: VisionLanguageModel
    num_frames: int
    answers: list[Answer] = field(default_factory=list)
    right: dict[str, list[bool]] = field(default_factory=dict)

    def as_dict(self, whole: ClipVariant) -> dict[str, Any]:
        """Return the row's numbers, beside the row that shows all frames; times in milliseconds."""
        same = [one.text == other.text for one, other in zip(self.answers, whole.answers, strict=True)]
        return {
            "name": self.name,
            "visual_tokens": round(statistics.fmean(each.counts.num_visual_tokens for each in self.answers), 1),
            "ttft_ms": round(1e3 * statistics.median(each.timings.ttft_s for each in self.answers), 2),
            "equal": round(statistics.fmean(same), 3),
            **{kind: round(statistics.fmean(right), 3) for kind, right in self.right.items()},
        }


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=positive, default=20, help="per kind and camera (default: 20)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="by default both")
    parser.add_argument("--picture", type=Path, help="PNG to write")
    args = parser.parse_args()
    figures: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in args.models:
        num_frames, kinds = MODELS[name]
        figures[name] = {camera: run(name, num_frames, kinds, camera, args.questions) for camera in CAMERAS}
    if args.picture:
        save_chart(args.picture, draw(figures))
    print_json({"benchmark": "changes", "questions": args.questions, "models": figures})
    return 0


def run(name: str, num_frames: int, kinds: tuple[str, ...], camera: str, num_questions: int) -> list[dict[str, Any]]:
    """Ask all questions about the clips of one camera, shown in all ways, and print the table."""
    variants = list_variants(name, num_frames)
    for kind in kinds:
        for index in range(num_questions):
            case, duration_s = clip_case(kind, index)
            clip = film_clip(case.scene, camera, duration_s, num_frames)
            for frame in clip:
                variants[0].model.prefetch(frame, is_alone=False)
            for variant in variants:
                frames = [
                    clip[index] for index in np.linspace(0, num_frames - 1, variant.num_frames).round().astype(int)
                ]
                answer = variant.model.answer(Query(query_id=kind, question=case.question.text, max_tokens=16), frames)
                variant.answers.append(answer)
                variant.right.setdefault(kind, []).append(is_correct(case.question, answer.text))
    rows = [variant.as_dict(variants[0]) for variant in variants]
    table = Table(*rows[0], title=f"{name}, {camera} camera")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)
    return rows


def list_variants(name: str, num_frames: int) -> list[ClipVariant]:
    """Return the ways of showing a clip; all share one engine's weights and one cache of frames."""
    source = open_checkpoint(find_checkpoint(name))
    source = dataclasses.replace(source, spec=dataclasses.replace(source.spec, video_pools=((1, 1, 1),)))
    engine, tokenizer = load_engine(source, "onnxruntime", 1), ChatTokenizer.from_folder(source.tokenizer_folder)

    def new(rule: ChangeRule = SHOW_ALL, used: Any = engine) -> VisionLanguageModel:
        return VisionLanguageModel(used, tokenizer, backend="onnxruntime", limits=LIMITS, changes=rule)

    variants = [ClipVariant(WHOLE, new(), num_frames)]
    variants += [ClipVariant(f"{number} evenly", new(), number) for number in FEWER if number < num_frames]
    variants += [
        ClipVariant(f"changed by {rule.threshold:g}, key {rule.key_every}", new(rule), num_frames) for rule in RULES
    ]
    for text, is_spaced in (("closed up", False), ("as they were", True)):
        spaced = SpacedEngine(engine)
        model = new(used=spaced)
        model._frame_encoder = SingleTokenEncoder(
            spaced, tokenizer, LIMITS.frame_bytes, TOKEN_RULE, is_spaced=is_spaced
        )
        variants.append(ClipVariant(f"single tokens, {text}", model, num_frames))
    for variant in variants:
        variant.model.warm_up()
        variant.model._frame_encoder.cache = variants[0].model._frame_encoder.cache
    return variants


@styled
def draw(figures: dict[str, dict[str, list[dict[str, Any]]]]) -> Figure:
    """Draw right answers over visual tokens: a line for evenly spread frames, points for what is left out."""
    figure = Figure(figsize=(11.0, 3.2 * len(figures)))
    charts = figure.subplots(len(figures), len(CAMERAS), squeeze=False)
    for (name, by_camera), row in zip(figures.items(), charts, strict=True):
        kinds = MODELS[name][1]
        for (camera, rows), axes in zip(by_camera.items(), row, strict=True):
            points = {each["name"]: (each["visual_tokens"], statistics.fmean(map(each.get, kinds))) for each in rows}
            evenly = sorted(point for key, point in points.items() if key.endswith("evenly") or key == WHOLE)
            changed = [point for key, point in points.items() if key.startswith("changed")]
            single = [point for key, point in points.items() if key.startswith("single")]
            axes.plot(*zip(*evenly, strict=True), "o-", color=GRAY, label="frames evenly")
            axes.plot(*zip(*changed, strict=True), "o", color=BLUE, label="frames that changed")
            axes.plot(*zip(*single, strict=True), "x", color=ORANGE, label="tokens that changed")
            axes.set(title=f"{name}, {camera}", xlabel="visual tokens", ylabel="right", ylim=(0, 1.02), xlim=(0, None))
    charts[0][0].legend()
    return figure


if __name__ == "__main__":
    sys.exit(main())
