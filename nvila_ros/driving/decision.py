"""From an answer to a step that may be taken, or to the reason why none may."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from nvila_ros.driving.motion import Space
from nvila_ros.driving.outcomes import DriveStop, Fault, ScoredStep
from nvila_ros.prompt.navila import ACTIONS, SENTENCES, Action
from nvila_ros.types import NS_PER_S

MIN_WAY_M, DETOUR_M = 0.1, 0.5
"""A way ahead that is shorter is not worth a step; and how far a robot goes that has turned away from a thing."""
_ROUND_SLACK_RAD = 0.1  # eight turns of 45 degrees are a round
_AHEAD = tuple(action for action in ACTIONS if action.kind == "forward")
_TURNS = tuple(action for action in ACTIONS if action.kind in ("left", "right"))


def read_choice(
    question: str,
    choices: Sequence[str],
    probabilities: Sequence[float],
    stamps_ns: Sequence[int],
    query_id: str,
    ros_ns: int,
) -> ScoredStep | Fault:
    """Return the likeliest action of an answer; a fault where it is no answer about the ten.

    The kind is chosen first and then its amount, as greedy decoding of the sentence does: three turns to the left that
    are alike are one wish to turn left.

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
    best = _likeliest(probabilities)
    age_s = (ros_ns - max(stamps_ns)) / NS_PER_S
    stamps = tuple(sorted(stamps_ns))
    return ScoredStep(ACTIONS[best], probabilities[best], question, tuple(probabilities), stamps, query_id, age_s)


def make_way(choice: ScoredStep, space: Space, turned: str = "", turns: Sequence[Action] = ()) -> ScoredStep:
    """Return the step that is made of a choice: what there is no room for is gone round.

    A robot that stands still sees the same again, and a model would choose the same again. So where there is no room
    ahead, the robot turns to where there is, on and on to one side; and once it has turned away it goes ahead before it
    may turn back, since what it is to go to still lies behind the thing. Likewise one that turns back for the second
    time goes ahead: what it looks for lies between, and from nearer it is seen better. And so does one that has turned
    once round: what it looks for is not seen from here.

    Args:
        choice: a way ahead or a turn.
        space: what is free; `inf` where no guard knows.
        turned: side to which the last step turned because there was no room; empty where it did not.
        turns: made since the last way ahead, oldest first.
    """
    is_ahead, has_room = choice.action.kind == "forward", space.ahead_m >= _AHEAD[0].amount
    if has_room and (turned or _turns_in_vain([*turns, choice.action])):
        return _instead(choice, _longest(min(space.ahead_m, DETOUR_M)))
    if not is_ahead and not turned:
        return choice
    if is_ahead and space.ahead_m >= MIN_WAY_M:
        return choice if choice.action.amount <= space.ahead_m else _instead(choice, _longest(space.ahead_m))
    return _instead(choice, _turn_away(choice, space, turned))


def _turns_in_vain(actions: Sequence[Action]) -> bool:
    """Return whether turns, and nothing else, go back for the second time, or on behind a whole round."""
    if any(action.kind == "forward" for action in actions):
        return False
    num_returns = sum(a.kind != b.kind for a, b in itertools.pairwise(actions))
    angle = sum(action.amount if action.kind == "left" else -action.amount for action in actions[:-1])
    return num_returns > 1 or abs(angle) > 2 * math.pi - _ROUND_SLACK_RAD


def _instead(choice: ScoredStep, action: Action) -> ScoredStep:
    return replace(choice, action=action, probability=choice.probabilities[ACTIONS.index(action)])


def _longest(room_m: float) -> Action:
    """Return the longest way ahead that fits, or the shortest one, which the guard may end early."""
    return [each for each in _AHEAD if each.amount <= max(room_m, _AHEAD[0].amount)][-1]


def _turn_away(choice: ScoredStep, space: Space, turned: str) -> Action:
    """Return the least turn behind which there is room, else the widest; to the side before, or the likelier one."""
    rooms = space.turns_m or (math.inf,) * len(_TURNS)

    def order(k: int) -> tuple[float, float, float]:
        amount, has_room = _TURNS[k].amount, rooms[k] >= DETOUR_M
        return -min(rooms[k], DETOUR_M), amount if has_room else -amount, -sides[_TURNS[k].kind]

    by_action = dict(zip(ACTIONS, choice.probabilities, strict=True))
    sides = {side: sum(p for action, p in by_action.items() if action.kind == side) for side in ("left", "right")}
    return _TURNS[min((k for k in range(len(_TURNS)) if _TURNS[k].kind == (turned or _TURNS[k].kind)), key=order)]


def _likeliest(probabilities: Sequence[float]) -> int:
    """Return the likeliest amount of the likeliest kind; of equals the first."""
    kinds = dict.fromkeys((action.kind for action in ACTIONS), 0.0)
    for action, p in zip(ACTIONS, probabilities, strict=True):
        kinds[action.kind] += p
    kind = max(kinds, key=lambda each: kinds[each])
    return max((k for k in range(len(ACTIONS)) if ACTIONS[k].kind == kind), key=lambda k: probabilities[k])


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
