"""`nvila eval CHECKPOINT DATA`: a model's answers to the questions of a data set, scored against its own answers.

In: conversations in JSON or JSON lines about images, videos and ROS bags, as `nvila prune` takes them, or bags in which
answers of the node were recorded. Out: a table by sub-dataset, and as the last line one JSON object. Answers kept in a
file are not asked for again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from nvila_ros.errors import ConfigError
from nvila_ros.models.build import Build, fingerprint
from nvila_ros.runtime.loading import choose_backend, find_checkpoint, open_model
from nvila_ros.tools.answer_log import AnswerLog, Key
from nvila_ros.tools.asking import QueryModel, ask_sample
from nvila_ros.tools.metrics import METRICS, best_match
from nvila_ros.training.conversations.bad_samples import BadSamples, SampleError
from nvila_ros.training.conversations.files import SampleSource
from nvila_ros.training.conversations.samples import Sample, right_answers
from nvila_ros.types import Answer

NUM_SHOWN_WRONG = 3
OnRecord = Callable[[], None]
"""Called after each record."""


@dataclass(frozen=True, slots=True)
class GroupScore:
    """The scores of one sub-dataset.

    Attributes:
        num_asked: turns.
        means: of each metric over them, 0 to 1.
        wrong: a few turns that the first metric gives less than half, as (answer, truth).
    """

    num_asked: int
    means: dict[str, float]
    wrong: tuple[tuple[str, str], ...]


def describe_run(args: argparse.Namespace, sources: Sequence[SampleSource], max_tokens: int) -> dict[str, Any]:
    """Return what decides the answers of a run."""
    model = open_model(find_checkpoint(args.checkpoint))
    weights = model.weights_sha256 if isinstance(model, Build) else fingerprint(model)
    return {
        "data": {source.name: source.identity() for source in sources},
        "by": args.by,
        "weights": weights,
        "backend": choose_backend(model, args.backend),
        "precision": args.precision,
        "frames": args.frames or model.spec.num_video_frames,
        "max_tokens": max_tokens,
    }


def ask_all(
    model: QueryModel,
    sources: Sequence[SampleSource],
    log: AnswerLog,
    bad_samples: BadSamples,
    *,
    num_frames: int,
    max_tokens: int,
    limit: int = 0,
    on_record: OnRecord = lambda: None,
) -> None:
    """Ask about every record that the log has no answer to.

    Args:
        model: is asked.
        sources: of records.
        log: takes the answers.
        bad_samples: counts the records that cannot be asked about.
        num_frames: the most of a video.
        max_tokens: the longest answer.
        limit: records of each source; 0 is all.
        on_record: called after each.

    Raises:
        SampleError: a record cannot be asked about, and the run is strict.
    """
    for key, source in _records(sources, limit):
        if key not in log.lines:
            try:
                sample = source.read(key[1])
                record = json.loads(source.line(key[1]))
                answers = ask_sample(
                    model, sample, num_frames=num_frames, max_tokens=max_tokens, choices=_choices(record, sample.name)
                )
                log.add(key, _as_line(sample, record, answers))
            except SampleError as error:
                bad_samples.add(error)
        on_record()


def score_all(
    sources: Sequence[SampleSource], log: AnswerLog, metrics: Sequence[str], limit: int = 0
) -> dict[str, GroupScore]:
    """Return the scores of each sub-dataset that has an answer, in order of appearance."""
    turns: dict[str, list[dict[str, Any]]] = {}
    for key, _ in _records(sources, limit):
        if key in log.lines:
            turns.setdefault(log.lines[key]["group"], []).extend(log.lines[key]["turns"])
    return {group: _score(each, metrics) for group, each in turns.items()}


def as_table(scores: dict[str, GroupScore], metrics: Sequence[str]) -> Table:
    """Return a table of the scores, with a few wrong answers of each sub-dataset."""
    table = Table("group", "asked", *metrics, "said instead of the truth")
    for column in table.columns[1:-1]:
        column.justify = "right"
    for group, score in scores.items():
        shown = ", ".join(f"{said!r} for {true!r}" for said, true in score.wrong)
        row = (group, str(score.num_asked), *(f"{score.means[name]:.3f}" for name in metrics), shown)
        table.add_row(*(text.replace("[", r"\[") for text in row))
    return table


def as_dict(scores: dict[str, GroupScore], metrics: Sequence[str], bad_samples: BadSamples) -> dict[str, Any]:
    """Return the mean of each metric over all turns and by sub-dataset, and what was left out."""
    asked = sum(score.num_asked for score in scores.values())
    overall = {
        name: sum(score.means[name] * score.num_asked for score in scores.values()) / asked if asked else 0.0
        for name in metrics
    }
    groups = {group: {"asked": score.num_asked, **score.means} for group, score in scores.items()}
    return {"asked": asked, **overall, "groups": groups, "skipped": dict(bad_samples.counts)}


def check_metrics(names: Sequence[str]) -> None:
    """Check that metrics are known.

    Raises:
        ConfigError: one is not, or there is none.
    """
    unknown = sorted(set(names) - METRICS.keys())
    if unknown or not names:
        raise ConfigError(f"--metric must be some of {','.join(METRICS)}, got {','.join(unknown) or 'none'}")


def _records(sources: Sequence[SampleSource], limit: int) -> Iterator[tuple[Key, SampleSource]]:
    for source in sources:
        for index in range(min(limit or len(source), len(source))):
            yield (source.name, index), source


def _choices(record: dict[str, Any], name: str) -> list[str]:
    choices = record.get("choices") or []
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice for choice in choices):
        raise SampleError("malformed", name, f"choices must be a list of texts, got {choices!r:.80}")
    return choices


def _as_line(sample: Sample, record: dict[str, Any], answers: Sequence[Answer]) -> dict[str, Any]:
    turns = []
    for turn, answer in zip(sample.turns, answers, strict=True):
        turns.append(
            {
                "question": answer.query.question,
                "truths": (len(sample.turns) == 1 and right_answers(record)) or [turn.answer],
                "answer": answer.text,
                "finish_reason": answer.finish_reason.name.lower(),
                "num_frames": len(answer.frames),
                "ttft_s": answer.timings.ttft_s,
                "total_s": answer.timings.total_s,
            }
        )
    return {"id": record.get("id"), "group": sample.group, "turns": turns}


def _score(turns: Sequence[dict[str, Any]], metrics: Sequence[str]) -> GroupScore:
    by_metric = {name: [best_match(name, turn["answer"], turn["truths"]) for turn in turns] for name in metrics}
    failed = [turn for turn, value in zip(turns, by_metric[metrics[0]], strict=True) if value < 0.5]
    return GroupScore(
        num_asked=len(turns),
        means={name: sum(values) / len(values) for name, values in by_metric.items()},
        wrong=tuple((turn["answer"], turn["truths"][0]) for turn in failed[:NUM_SHOWN_WRONG]),
    )
