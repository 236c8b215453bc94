"""How near the intervals of answers of type `when` are to the truth.

A case of something that happens is right where the best interval has a temporal IoU of half with the true one, a case
of what does not happen where no interval is given. What was missed has an IoU of 0 and counts for no boundary's error.
"""

from __future__ import annotations

import json

from nvila_ros.types import Answer, FinishReason
from nvila_ros.world.questions import EvalCase
from nvila_ros.world.timed_events import NONE

RIGHT_IOU = 0.5


def temporal_iou(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Return intersection over union of two intervals, 0 where both are empty."""
    shared = max(min(one[1], other[1]) - max(one[0], other[0]), 0.0)
    union = one[1] - one[0] + other[1] - other[0] - shared
    return shared / union if union > 0 else 0.0


def measure_interval(case: EvalCase, answer: Answer) -> dict[str, float]:
    """Return `iou` of the best interval and `gaps`, the mean error of its ends in gaps between frames.

    The truth is cut at the last frame, behind which no answer lies. Of what does not happen nothing is measured.
    """
    if case.question.answer == NONE:
        return {}
    found = _best(answer)
    if found is None:
        return {"iou": 0.0}
    start, end = (min(float(word), case.times_s[-1]) for word in case.question.answer.split())
    gap = case.times_s[-1] / (len(case.times_s) - 1)
    error = (abs(found[0] - start) + abs(found[1] - end)) / 2
    return {"iou": temporal_iou(found, (start, end)), "gaps": error / gap}


def is_found(case: EvalCase, answer: Answer) -> bool:
    """Return whether an answer is right."""
    if case.question.answer == NONE:
        return answer.finish_reason is FinishReason.STOP and _best(answer) is None
    return measure_interval(case, answer)["iou"] >= RIGHT_IOU


def say_interval(answer: Answer) -> str:
    """Return the best interval in seconds, as the truth is written."""
    found = _best(answer)
    return NONE if found is None else f"{found[0]:.3f} {found[1]:.3f}"


def _best(answer: Answer) -> tuple[float, float] | None:
    """Return the best interval."""
    intervals = json.loads(answer.text)["intervals"] if answer.finish_reason is FinishReason.STOP else []
    return (intervals[0]["start_s"], intervals[0]["end_s"]) if intervals else None
