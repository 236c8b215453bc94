"""What a model gets on `tiny-world-when` that looks at no frame: the interval that is best for all clips of a kind.

Prints a table and, last, one JSON line; the figures of a model mean something above these alone.
"""

from __future__ import annotations

import argparse
import itertools

import numpy as np
from rich.console import Console
from rich.table import Table

from nvila_ros.tools.interval_scores import RIGHT_IOU, temporal_iou
from nvila_ros.tools.options import positive, print_json
from nvila_ros.world.timed_events import ABSENT, EVAL_CLIP_FRAMES, EVAL_CLIP_S, EVAL_KINDS, eval_timed_case

STEP_S = 0.25
"""Between the ends that are tried."""


def main() -> None:
    """Try every interval on every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=positive, default=300, help="per kind (default: %(default)s)")
    args = parser.parse_args()
    found = {kind: best_constant(kind, args.questions) for kind in EVAL_KINDS if kind != ABSENT}
    table = Table("kind", "interval, s", "right", "iou", "gaps")
    for kind, each in found.items():
        table.add_row(kind, str(each["interval_s"]), *(f"{each[name]:.3f}" for name in ("right", "iou", "gaps")))
    Console().print(table)
    print_json(found)


def best_constant(kind: str, num_questions: int) -> dict[str, object]:
    """Return the interval with the highest mean IoU over the cases of a kind, and its scores."""
    truths = [_truth(kind, index) for index in range(num_questions)]
    ends = np.arange(0, EVAL_CLIP_S + STEP_S, STEP_S).tolist()

    def ious(interval: tuple[float, float]) -> np.ndarray:
        return np.array([temporal_iou(interval, truth) for truth in truths])

    best = max(itertools.combinations(ends, 2), key=lambda interval: ious(interval).mean())
    gap_s = EVAL_CLIP_S / (EVAL_CLIP_FRAMES - 1)
    return {
        "interval_s": best,
        "right": float((ious(best) >= RIGHT_IOU).mean()),
        "iou": float(ious(best).mean()),
        "gaps": float(np.abs(np.array(truths) - best).mean() / gap_s),
    }


def _truth(kind: str, index: int) -> tuple[float, float]:
    start, end = (min(float(word), EVAL_CLIP_S) for word in eval_timed_case(kind, index).question.answer.split())
    return start, end


if __name__ == "__main__":
    main()
