"""The metrics that data sets are scored by: how well an answer matches the right ones, 0 to 1.

    exact      the same up to case, outer spaces and one final period
    contains   the truth stands somewhere in the answer, up to case; OCRBench (arXiv 2305.07895)
    relaxed    a number within 5 % of the truth, all else as exact; ChartQA (arXiv 2203.10244) section 5.1
    anls       1 less the edit distance as a share of the longer text, 0 from a share of 0.5 on; ST-VQA (arXiv
               1905.13648) section 4

Where several answers are right, the one that matches best counts, as in ST-VQA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from nvila_ros.world.questions import Question, is_correct

Metric = Callable[[str, str], float]
"""Takes an answer and one truth."""
TOLERANCE = 0.05
"""Share of a number by which `relaxed` lets an answer miss it."""
ANLS_THRESHOLD = 0.5
"""Share of the longer text from which on an edit distance counts as another answer."""


def exact(answer: str, truth: str) -> float:
    """Return 1 for the same text, up to case, outer spaces and one final period."""
    return float(is_correct(Question("", "", truth), answer))


def contains(answer: str, truth: str) -> float:
    """Return 1 where the truth stands in the answer, up to case and line breaks."""
    return float(_one_line(truth) in _one_line(answer))


def relaxed(answer: str, truth: str) -> float:
    """Return 1 for a number within `TOLERANCE` of the truth; of a truth that is no number as `exact`.

    A percent sign divides by 100 on either side, so that "12%" is 0.12 and not 12, as ChartQA's own scoring reads it.
    """
    given, true = _number(answer), _number(truth)
    if given is None or not true:  # a share of zero is no tolerance
        return exact(answer, truth)
    return float(abs(given - true) <= TOLERANCE * abs(true))


def anls(answer: str, truth: str) -> float:
    """Return the normalised Levenshtein similarity of two texts, up to case; 0 below the threshold."""
    given, true = answer.strip().lower(), truth.strip().lower()
    share = _edit_distance(given, true) / max(len(given), len(true), 1)
    return 1 - share if share < ANLS_THRESHOLD else 0.0


METRICS: dict[str, Metric] = {"exact": exact, "contains": contains, "relaxed": relaxed, "anls": anls}
"""Every metric by its name."""


def best_match(metric: str, answer: str, truths: Sequence[str]) -> float:
    """Return the score of an answer by the truth that it matches best."""
    return max(METRICS[metric](answer, truth) for truth in truths)


def _one_line(text: str) -> str:
    return " ".join(text.lower().split())


def _number(text: str) -> float | None:
    digits = text.strip().removesuffix(".")
    try:
        number = float(digits.removesuffix("%")) / (100 if digits.endswith("%") else 1)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _edit_distance(first: str, second: str) -> int:
    """Count the characters to insert, delete or replace; a row of the table at a time."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        corner, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]
