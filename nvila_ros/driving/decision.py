"""From an answer to a step that may be taken, or to the reason why none may."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nvila_ros.driving.outcomes import DriveStop, Fault, ScoredStep
from nvila_ros.prompt.navila import ACTIONS, SENTENCES
from nvila_ros.types import NS_PER_S


def read_choice(
    question: str,
    choices: Sequence[str],
    probabilities: Sequence[float],
    stamps_ns: Sequence[int],
    query_id: str,
    ros_ns: int,
) -> ScoredStep | Fault:
    """Return the likeliest action of an answer; a fault where it is no answer about the ten.

    Args:
        question: that was asked.
        choices: that the answer scored.
        probabilities: of each.
        stamps_ns: of its frames.
        query_id: of the answer.
        ros_ns: now.
    """
    if tuple(choices) != SENTENCES or len(probabilities) != len(SENTENCES):
        return Fault(DriveStop.NO_ANSWER, f"an answer must score the ten actions, got {list(choices)!r:.200}")
    if not all(math.isfinite(p) and 0 <= p <= 1 for p in probabilities) or abs(sum(probabilities) - 1) > 1e-2:
        return Fault(DriveStop.NO_ANSWER, f"probabilities must lie in [0, 1] and sum to 1, got {list(probabilities)}")
    if not stamps_ns:
        return Fault(DriveStop.STALE, "the answer names no frame")
    best = max(range(len(ACTIONS)), key=lambda k: (probabilities[k], -k))  # of equals the first: to stop
    age_s = (ros_ns - max(stamps_ns)) / NS_PER_S
    stamps = tuple(sorted(stamps_ns))
    return ScoredStep(ACTIONS[best], probabilities[best], question, tuple(probabilities), stamps, query_id, age_s)


def objection(choice: ScoredStep, *, min_probability: float, max_age_s: float, settled_ns: int) -> Fault | None:
    """Return why a choice may not be acted upon; None where it may.

    Args:
        choice: of the model.
        min_probability: of its action.
        max_age_s: of its newest frame.
        settled_ns: the newest frame must not be from before, ROS clock: it would show where the robot was.
    """
    if choice.stamps_ns[-1] < settled_ns:
        late_s = (settled_ns - choice.stamps_ns[-1]) / NS_PER_S
        return Fault(DriveStop.STALE, f"the answer is about a frame from {late_s:.3f} s before the last step had ended")
    if not -max_age_s <= choice.age_s <= max_age_s:
        return Fault(
            DriveStop.STALE, f"the answer's newest frame is {choice.age_s:.2f} s old, at most {max_age_s} s is allowed"
        )
    if choice.probability < min_probability:
        text = f"{choice.action.sentence!r} has {choice.probability:.3f}, below min_probability {min_probability:.3f}"
        return Fault(DriveStop.UNSURE, f"no action is likely enough: {text}")
    return None
