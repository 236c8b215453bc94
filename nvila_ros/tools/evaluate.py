"""`nvila eval`: exact match by kind of question on scenes from seeds that training never draws.

In: a checkpoint. Out: a table with a few wrong answers of each kind, and as the last line one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from nvila_ros.errors import ConfigError
from nvila_ros.pipeline import load_perceiver
from nvila_ros.tools.options import add_model_options, positive, print_json, words
from nvila_ros.tools.suites import DEFAULT_SUITE, HEIGHT, SUITES, WIDTH, Render, Suite
from nvila_ros.training.questions import EvalCase, is_correct
from nvila_ros.training.scenes import render
from nvila_ros.types import Answer, Frame, Query

NUM_SHOWN_WRONG = 3


class Answerer(Protocol):
    """What the suite needs of a model; `pipeline.Perceiver` is the one there is."""

    def answer(self, query: Query, frames: Sequence[Frame]) -> Answer:
        """Answer one query about frames in capture order."""
        ...


@dataclass(slots=True)
class Score:
    """How the questions of one kind went; `wrong` are the cases answered wrong and what was said."""

    num_asked: int = 0
    wrong: list[tuple[EvalCase, str]] = field(default_factory=list)

    @property
    def num_right(self) -> int:
        """Questions answered right."""
        return self.num_asked - len(self.wrong)

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 where nothing was asked."""
        return self.num_right / self.num_asked if self.num_asked else 0.0


OnCase = Callable[[str, int, EvalCase, Answer], None]
"""Takes each case after its answer: kind, index, case, answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder, or name of an embedded one")
    suites = "; ".join(f"{name}: {','.join(suite.kinds)}" for name, suite in SUITES.items())
    parser.add_argument("--suite", choices=SUITES, default=DEFAULT_SUITE, help="what is asked (default: %(default)s)")
    parser.add_argument("--questions", type=positive, default=500, metavar="N", help="per kind (default: %(default)s)")
    parser.add_argument("--kinds", type=words, metavar="K,K", help=f"some of the suite's, by default all ({suites})")
    add_model_options(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write each case as a line of JSON")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")


def run(args: argparse.Namespace) -> int:
    """Ask every case and print the scores.

    Raises:
        NvilaError: a kind is unknown, or checkpoint or backend is not acceptable.
    """
    suite = SUITES[args.suite]
    kinds = suite.kinds if args.kinds is None else args.kinds
    unknown = sorted(set(kinds) - set(suite.kinds))
    if unknown or not kinds:
        raise ConfigError(f"--kinds must be some of {','.join(suite.kinds)}, got {','.join(unknown) or 'none'}")
    model = load_perceiver(args.checkpoint, backend=args.backend, threads=args.threads)
    with contextlib.ExitStack() as stack:
        report = stack.enter_context(_Progress(len(kinds) * args.questions))
        lines = stack.enter_context(_Lines(args.out)) if args.out else None

        def on_case(kind: str, index: int, case: EvalCase, answer: Answer) -> None:
            report.advance(kind)
            if lines is not None:
                lines.write(kind, index, case, answer)

        scores = score(model, kinds, args.questions, on_case, suite=suite)
    if not args.json:
        Console(highlight=False).print(as_table(scores))
    names = {"model": model.model, "backend": model.backend, "precision": model.precision}
    print_json({**as_dict(scores), "questions": args.questions, **names})
    return 0


def score(
    model: Answerer,
    kinds: Sequence[str],
    num_questions: int,
    on_case: OnCase,
    *,
    suite: Suite = SUITES[DEFAULT_SUITE],
) -> dict[str, Score]:
    """Ask `num_questions` cases of each kind of a suite."""
    scores: dict[str, Score] = {}
    for kind in kinds:
        scores[kind] = Score()
        for index in range(num_questions):
            case = suite.case(kind, index)
            answer = ask_case(model, case, f"{kind}-{index}", suite.render)
            scores[kind].num_asked += 1
            if not is_correct(case.question, answer.text):
                scores[kind].wrong.append((case, answer.text))
            on_case(kind, index, case, answer)
    return scores


def ask_case(model: Answerer, case: EvalCase, query_id: str, render: Render = render) -> Answer:
    """Film the frames of a case and ask its question."""
    frames = [Frame(image=render(case.scene, t, WIDTH, HEIGHT), stamp_ns=round(t * 1e9)) for t in case.times_s]
    query = Query(query_id=query_id, question=case.question.text, num_frames=len(frames), max_tokens=16)
    return model.answer(query, frames)


def as_dict(scores: dict[str, Score]) -> dict[str, float]:
    """Return the accuracy of each kind and over all questions."""
    num_asked = sum(each.num_asked for each in scores.values())
    overall = sum(each.num_right for each in scores.values()) / num_asked
    return {kind: each.accuracy for kind, each in scores.items()} | {"overall": overall}


def as_table(scores: dict[str, Score]) -> Table:
    """Return a table of the scores, with a few wrong answers of each kind."""
    table = Table("kind", "asked", "right", "accuracy", "said instead of the truth")
    for column in table.columns[1:4]:
        column.justify = "right"
    for kind, each in scores.items():
        shown = [f"{said!r} for {case.question.answer!r}" for case, said in each.wrong[:NUM_SHOWN_WRONG]]
        row = (kind, str(each.num_asked), str(each.num_right), f"{each.accuracy:.3f}", ", ".join(shown))
        table.add_row(*(text.replace("[", r"\[") for text in row))
    return table


class _Progress:
    """A bar on stderr, and nothing where nobody watches."""

    def __init__(self, total: int) -> None:
        columns = [
            TextColumn("{task.description:<7}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        ]
        console = Console(stderr=True)
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=total)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._bar.stop()

    def advance(self, kind: str) -> None:
        self._bar.update(self._task, advance=1, description=kind)


class _Lines:
    """Each case as a line of JSON, so that wrong answers can be looked at."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out {path} cannot be written: {error.strerror}; choose another file") from error

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *args: object) -> None:
        self._file.close()

    def write(self, kind: str, index: int, case: EvalCase, answer: Answer) -> None:
        line = {
            "kind": kind,
            "index": index,
            "question": case.question.text,
            "truth": case.question.answer,
            "answer": answer.text,
            "is_correct": is_correct(case.question, answer.text),
            "times_s": case.times_s,
            "objects": [f"{obj.color} {obj.shape} {obj.direction}" for obj in case.scene.objects],
            "background": case.scene.background.kind,
            "ttft_s": answer.timings.ttft_s,
            "total_s": answer.timings.total_s,
        }
        self._file.write(json.dumps(line) + "\n")
