"""The report of a pruned data set: counts of each sub-dataset, and samples of the paper's three kinds.

Source: NVILA (arXiv 2412.04468), figure 5: a score near 0 is too easy, far below 0 a wrong answer, far above helpful.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from nvila_ros.training.conversations.samples import Sample
from nvila_ros.training.score_run import Scores, ScoringRun

NUM_SHOWN_GROUPS = 8


def as_dict(scores: Scores, delta: np.ndarray, is_kept: np.ndarray) -> dict[str, Any]:
    """Return the run's numbers: of each sub-dataset, and of the samples that were left out."""
    groups = {}
    for number, name in enumerate(scores.groups):
        is_mine = scores.group_N == number
        kept = delta[is_mine & is_kept]
        groups[name] = {
            "scored": int(is_mine.sum()),
            "kept": len(kept),
            "mean": float(delta[is_mine].mean()),
            "lowest_kept": float(kept.min()),
        }
    reasons = Counter(scores.faults[code] for code in scores.fault_N[scores.fault_N >= 0].tolist())
    return {"groups": groups, "left_out": dict(reasons), "kept": int(is_kept.sum())}


def group_table(report: dict[str, Any]) -> Table:
    """Return the sub-datasets as a table."""
    table = Table("sub-dataset", "scored", "kept", "mean score", "lowest kept")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in report["groups"].items():
        numbers = (f"{row[key]:.4f}" for key in ("mean", "lowest_kept"))
        table.add_row(escape(name), str(row["scored"]), str(row["kept"]), *numbers)
    return table


def example_table(run: ScoringRun, scores: Scores, delta: np.ndarray) -> Table:
    """Return samples of the three kinds of each sub-dataset, read anew."""
    table = Table("kind", "sub-dataset", "score", "question", "answer")
    for group in range(min(len(scores.groups), NUM_SHOWN_GROUPS)):
        for kind, n in find_examples(scores, delta, group):
            sample = run.sources[scores.source_N[n]].read(int(scores.index_N[n]))
            table.add_row(kind, escape(scores.groups[group]), f"{delta[n]:.4f}", *map(escape, _texts(sample)))
    return table


def find_examples(scores: Scores, delta: np.ndarray, group: int, num_each: int = 2) -> Iterator[tuple[str, int]]:
    """Yield the kind and number of samples of a sub-dataset that are typical of the three kinds.

    Too easy are the samples with scores nearest to 0 among the half that the small model finds more likely.
    """
    members = np.flatnonzero(scores.group_N == group)
    small = scores.log_small_N[members] / scores.num_tokens_N[members]
    known = members[small >= np.median(small)]
    ascending = members[np.argsort(delta[members], kind="stable")]
    for kind, numbers in (
        ("too easy", known[np.argsort(np.abs(delta[known]), kind="stable")]),
        ("wrong", ascending),
        ("helpful", ascending[::-1]),
    ):
        yield from ((kind, n) for n in numbers[:num_each].tolist())


def _texts(sample: Sample) -> tuple[str, str]:
    questions = [" ".join([*(f"<{medium.kind}>" for medium in turn.media), turn.text]) for turn in sample.turns]
    return _short(" / ".join(questions)), _short(" / ".join(turn.answer for turn in sample.turns))


def _short(text: str, length: int = 72) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."
