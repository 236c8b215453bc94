"""How a step and a drive end; values and names are those of `Step.msg` and `Navigate.action`."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from nvila_ros.prompt.navila import Action


class StepOutcome(IntEnum):
    """What became of a step."""

    BEGUN = 1
    DONE = 2
    BLOCKED = 3
    TIMED_OUT = 4
    INTERRUPTED = 5
    FAILED = 6
    NOT_TAKEN = 7


class DriveStop(IntEnum):
    """Why a drive ended; only STOPPED means that the model believes it has done what the instruction says."""

    STOPPED = 1
    UNSURE = 2
    LIMIT = 3
    CANCELED = 4
    DISARMED = 5
    STALE = 6
    FROZEN = 7
    CLOCK_JUMP = 8
    NO_ANSWER = 9
    BLOCKED = 10
    MOTION_FAILED = 11
    INTERRUPTED = 12
    SHUTDOWN = 13
    INVALID = 14


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a robot must stand: the reason, and the rule, the values and the fix."""

    reason: DriveStop
    text: str


@dataclass(frozen=True, slots=True)
class ScoredStep:
    """What a model chose.

    Attributes:
        question: that it was asked.
        probabilities: of each of `prompt.navila.ACTIONS`.
        stamps_ns: captures of the frames that it is about, oldest first, ROS clock.
        query_id: of its answer.
        age_s: from the newest frame's capture to the decision, s.
    """

    action: Action
    probability: float
    question: str
    probabilities: tuple[float, ...]
    stamps_ns: tuple[int, ...]
    query_id: str
    age_s: float


@dataclass(frozen=True, slots=True)
class StepReport:
    """A step as it is reported: when it begins, and when it has ended.

    Attributes:
        begin_ns: ROS clock; 0 where nothing was moved.
        end_ns: ROS clock; 0 before.
        moved: of the action's amount, m or rad.
    """

    index: int
    outcome: StepOutcome
    choice: ScoredStep
    error: str = ""
    begin_ns: int = 0
    end_ns: int = 0
    moved: float = 0.0


@dataclass(frozen=True, slots=True)
class DriveEnd:
    """How a drive ended."""

    reason: DriveStop
    error: str
    num_steps: int
    traveled_m: float
    duration_s: float
    last: StepReport | None
