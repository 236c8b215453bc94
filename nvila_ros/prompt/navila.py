"""NaVILA's protocol: how a model is asked for a robot's next step, its ten answers, and how they are read.

In: an instruction. Out: the question; and of a model's sentence the action. The words are those of NaVILA's evaluator,
since a model that was tuned on them depends on each. Its images stand amid its words; a query of ours shows its frames
before its text, so `frames_first` is the same text without their places, and `SHORT` asks the same in few words.

An answer that matches no action is none: upstream takes it for a stop or, in a client of its, for a way ahead.

Source: NaVILA (arXiv 2412.04453); AnjieCheng/NaVILA `evaluation/vlnce_baselines/navila_trainer.py` at 76b98f2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from nvila_ros.errors import QueryError

Kind = Literal["stop", "forward", "left", "right"]
T = TypeVar("T")
NUM_FRAMES = 8
"""Seven of the past, spread evenly since the robot set out, and the current one."""
DISTANCES_CM = (25, 50, 75)
ANGLES_DEG = (15, 30, 45)
IMAGE = "<image>"
_BEFORE = (
    "Imagine you are a robot programmed for navigation tasks. You have been given a video of historical observations "
)
_BETWEEN = ", and current observation "
_REQUEST = (
    "Analyze this series of images to decide your next action, which could be turning left or right by a specific "
    "degree, moving forward a certain distance, or stop if the task is completed."
)


@dataclass(frozen=True, slots=True)
class Action:
    """One step: amount in m or rad, 0 of a stop; sentence as the model says it."""

    kind: Kind
    amount: float
    sentence: str


def _actions() -> tuple[Action, ...]:
    ahead = [Action("forward", cm / 100, f"The next action is move forward {cm} cm.") for cm in DISTANCES_CM]
    turns = [
        Action(side, math.radians(deg), f"The next action is turn {side} {deg} degree.")
        for side in ("left", "right")
        for deg in ANGLES_DEG
    ]
    return (Action("stop", 0.0, "The next action is stop."), *ahead, *turns)


ACTIONS: tuple[Action, ...] = _actions()
"""The closed list: to stop, then the ways ahead, to the left and to the right, each from the least."""
SENTENCES: tuple[str, ...] = tuple(action.sentence for action in ACTIONS)


def short(instruction: str) -> str:
    """Return the question in few words, as nvila-tiny-nav was tuned on it."""
    return f'Your assigned task is: "{instruction}" Decide your next action.'


def frames_first(instruction: str) -> str:
    """Return NaVILA's question without the places of its images, for a node that shows frames before the text."""
    return f'{_BEFORE.rstrip()}{_BETWEEN.rstrip()}. Your assigned task is: "{instruction}" {_REQUEST}'


def upstream(instruction: str, num_frames: int = NUM_FRAMES) -> str:
    """Return NaVILA's user message to the letter, with `<image>` where each frame stands."""
    past = f"{IMAGE}\n" * (num_frames - 1)
    return f'{_BEFORE}{past}{_BETWEEN}{IMAGE}\n. Your assigned task is: "{instruction}" {_REQUEST}'


QUESTIONS = {"short": short, "navila": frames_first}
"""Wordings by name."""


def question(wording: str, instruction: str) -> str:
    """Return the question that a wording asks.

    Raises:
        QueryError: there is no such wording, or the instruction is empty.
    """
    if wording not in QUESTIONS:
        raise QueryError(f"wording must be one of {', '.join(QUESTIONS)}, got {wording!r}")
    if not instruction.strip():
        raise QueryError("an instruction must hold text, got none")
    return QUESTIONS[wording](instruction.strip())


def sample_frames(frames: Sequence[T], black: T, num_frames: int = NUM_FRAMES) -> list[T]:
    """Return the frames that NaVILA's evaluator shows of all since the robot set out: black ones lead where few are.

    Args:
        frames: at least the current one, in order.
        black: stands for what was not seen.
        num_frames: to return.
    """
    padded = [black] * (num_frames - len(frames)) + list(frames)
    past = num_frames - 1
    return [padded[(len(padded) - 1) * k // past] for k in range(past)] + [padded[-1]]


_PATTERNS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("stop", re.compile(r"\bstop\b", re.IGNORECASE)),
    ("forward", re.compile(r"\bis move forward\b", re.IGNORECASE)),
    ("left", re.compile(r"\bis turn left\b", re.IGNORECASE)),
    ("right", re.compile(r"\bis turn right\b", re.IGNORECASE)),
)
_AMOUNTS: dict[Kind, tuple[str, tuple[int, ...]]] = {
    "forward": (r"move forward (\d+) cm", DISTANCES_CM),
    "left": (r"turn left (\d+) degree", ANGLES_DEG),
    "right": (r"turn right (\d+) degree", ANGLES_DEG),
}


def parse(text: str) -> Action | None:
    """Return the action that a sentence says, as NaVILA's evaluator reads it; None for one that says none.

    Its order is kept: a word `stop` anywhere stops. An amount that is no multiple of the least one becomes the nearest
    of the three, and one that is missing the least. What is more than the largest is cut to it: upstream makes such
    steps, and a step here has a bound.
    """
    kind = next((kind for kind, pattern in _PATTERNS if pattern.search(text)), None)
    if kind is None or kind == "stop":
        return None if kind is None else ACTIONS[0]
    pattern, amounts = _AMOUNTS[kind]
    found = re.search(pattern, text)
    amount = int(found[1]) if found else amounts[0]
    if amount % amounts[0]:
        amount = min(amounts, key=lambda known: abs(known - amount))
    amount = min(max(amount, amounts[0]), amounts[-1])
    unit = amount / 100 if kind == "forward" else math.radians(amount)
    return next(action for action in ACTIONS if action.kind == kind and math.isclose(action.amount, unit))
