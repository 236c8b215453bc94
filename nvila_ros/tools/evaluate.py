"""`nvila eval`: how often a checkpoint answers right, the questions of a suite or those of a data set.

In: a checkpoint, and data if any; a suite's scenes are from seeds that training never draws. Out: a table with a few
wrong answers of each kind or sub-dataset, and as the last line one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from pathlib import Path

from rich.console import Console

from nvila_ros.errors import ConfigError
from nvila_ros.files import close_reporting, write_errors
from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from nvila_ros.tools.answer_log import AnswerLog
from nvila_ros.tools.evaluate_data import as_dict as data_as_dict
from nvila_ros.tools.evaluate_data import as_table as as_data_table
from nvila_ros.tools.evaluate_data import ask_all, check_metrics, describe_run, score_all
from nvila_ros.tools.metrics import METRICS
from nvila_ros.tools.options import add_model_options, positive, print_json, whole, wide_console, words
from nvila_ros.tools.records import add_media_options, open_sources
from nvila_ros.tools.step_progress import StepProgress
from nvila_ros.tools.suite_scores import MAX_TOKENS, as_dict, as_table, score
from nvila_ros.tools.suites import DEFAULT_SUITE, SUITES
from nvila_ros.training.conversations.bad_samples import BadSamples, DataError
from nvila_ros.types import Answer
from nvila_ros.world.questions import EvalCase

NUM_QUESTIONS = 500
"""Asked of each kind where nobody says."""
SUITE_OPTIONS = ("suite", "questions", "kinds")
DATA_OPTIONS = ("metric", "by", "media", "allow_outside", "pixel_window", "frames", "max_tokens", "limit", "skip_bad")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder, or name of an embedded one")
    parser.add_argument(
        "data",
        nargs="*",
        type=Path,
        metavar="DATA",
        help="conversations in JSON or JSON lines, or bags with answers; none asks a suite",
    )
    _add_suite_options(parser)
    _add_data_options(parser)
    add_model_options(parser)
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write each case as a line of JSON; of DATA, run again to go on"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")


def _add_suite_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("without DATA")
    suites = "; ".join(f"{name}: {','.join(suite.kinds)}" for name, suite in SUITES.items())
    group.add_argument("--suite", choices=SUITES, help=f"what is asked (default: {DEFAULT_SUITE})")
    group.add_argument("--questions", type=positive, metavar="N", help=f"per kind (default: {NUM_QUESTIONS})")
    group.add_argument("--kinds", type=words, metavar="K,K", help=f"some of the suite's, by default all ({suites})")


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("with DATA")
    group.add_argument("--metric", type=words, metavar="M,M", help=f"of {','.join(METRICS)} (default: exact)")
    group.add_argument(
        "--by", default="", metavar="FIELD", help="field that names a sub-dataset; else each file is one"
    )
    add_media_options(group)
    group.add_argument("--frames", type=positive, metavar="N", help="most of a video (default: the checkpoint's)")
    group.add_argument("--max-tokens", type=positive, metavar="N", help=f"of an answer (default: {MAX_TOKENS})")
    group.add_argument("--limit", type=whole, default=0, metavar="N", help="records of each file; 0 is all (default)")


def run(args: argparse.Namespace) -> int:
    """Ask every case and print the scores.

    Raises:
        NvilaError: a kind is unknown, a record cannot be asked about, or checkpoint or backend is not acceptable.
    """
    foreign = SUITE_OPTIONS if args.data else DATA_OPTIONS
    given = [f"--{name.replace('_', '-')}" for name in foreign if getattr(args, name)]
    if given:
        raise ConfigError(f"{', '.join(given)} goes {'without' if args.data else 'with'} DATA; leave it out")
    return run_data(args) if args.data else run_suite(args)


def run_data(args: argparse.Namespace) -> int:
    """Ask the questions of a data set and print how right the answers are.

    Raises:
        NvilaError: as `run`.
    """
    metrics, max_tokens = args.metric or ("exact",), args.max_tokens or MAX_TOKENS
    check_metrics(metrics)
    sources = open_sources(
        args.data,
        args.media,
        args.by,
        allow_outside=args.allow_outside,
        reads_bags=True,
        window=args.pixel_window,
    )
    settings = describe_run(args, sources, max_tokens)
    bad_samples = BadSamples(is_strict=not args.skip_bad)
    model = load_model(args.checkpoint, backend=args.backend, precision=args.precision, threads=args.threads)
    total = sum(min(args.limit or len(source), len(source)) for source in sources)
    with AnswerLog(args.out, settings) as log, StepProgress(("records",)) as progress:
        ask_all(
            model,
            sources,
            log,
            bad_samples,
            num_frames=settings["frames"],
            max_tokens=max_tokens,
            limit=args.limit,
            on_record=progress.counter("records", total),
        )
    scores = score_all(sources, log, metrics, args.limit)
    if not scores:
        raise DataError(f"no record could be asked about: {next(iter(bad_samples.first.values()))}")
    if not args.json:
        wide_console().print(as_data_table(scores, metrics))
        for reason, count in bad_samples.counts.items():
            print(f"{count} left out, {reason}: {bad_samples.first[reason]}")
    print_json({**data_as_dict(scores, metrics, bad_samples), **_names(model)})
    return 0


def run_suite(args: argparse.Namespace) -> int:
    """Ask the questions of a suite and print the scores by kind.

    Raises:
        NvilaError: as `run`.
    """
    suite, num_questions = SUITES[args.suite or DEFAULT_SUITE], args.questions or NUM_QUESTIONS
    kinds = suite.kinds if args.kinds is None else args.kinds
    unknown = sorted(set(kinds) - set(suite.kinds))
    if unknown or not kinds:
        raise ConfigError(f"--kinds must be some of {','.join(suite.kinds)}, got {','.join(unknown) or 'none'}")
    for kind in kinds:
        suite.case(kind, 0)  # what is missing shows before the model is loaded
    model = load_model(args.checkpoint, backend=args.backend, precision=args.precision, threads=args.threads)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(StepProgress(("questions",)))
        count = progress.counter("questions", len(kinds) * num_questions)
        lines = stack.enter_context(_CaseLines(args.out)) if args.out else None

        def on_case(kind: str, index: int, case: EvalCase, answer: Answer) -> None:
            count(kind)
            if lines is not None:
                lines.write(kind, index, case, answer, suite.is_right(case, answer))

        scores = score(model, kinds, num_questions, on_case, suite=suite)
    if not args.json:
        Console(highlight=False).print(as_table(scores))
    print_json({**as_dict(scores), "questions": num_questions, **_names(model)})
    return 0


def _names(model: VisionLanguageModel) -> dict[str, str]:
    return dataclasses.asdict(model.info)


class _CaseLines:
    """Each case as a line of JSON, so that wrong answers can be looked at."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out {path} cannot be written: {error.strerror}; choose another file") from error

    def __enter__(self) -> _CaseLines:
        return self

    def __exit__(self, kind: type[BaseException] | None, *args: object) -> None:
        close_reporting(self._file, self._path, is_failing=kind is not None)

    def write(self, kind: str, index: int, case: EvalCase, answer: Answer, is_right: bool) -> None:
        line = {
            "kind": kind,
            "index": index,
            "question": case.question.text,
            "truth": case.question.answer,
            "answer": answer.text,
            "is_correct": is_right,
            "times_s": case.times_s,
            "objects": [f"{obj.color} {obj.shape} {obj.direction}" for obj in case.scene.objects],
            "background": case.scene.background.kind,
            "ttft_s": answer.timings.ttft_s,
            "total_s": answer.timings.total_s,
        }
        with write_errors(self._path):
            self._file.write(json.dumps(line) + "\n")
