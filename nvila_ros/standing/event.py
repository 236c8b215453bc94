"""What a standing query publishes when its answers fire its trigger."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from nvila_ros.standing.query import StandingQuery
from nvila_ros.types import Answer


class Phase(enum.IntEnum):
    """Which part of an event this is; the values are those of `msg/Event`."""

    BEGIN = 1
    END = 2
    INSTANT = 3


class EndReason(enum.IntEnum):
    """Why an event ended; the values are those of `msg/Event`."""

    NONE = 0
    OVER = 1
    STALE = 2
    TIME_JUMP = 3
    REMOVED = 4
    DISABLED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One report: a begin, the end with the same id, or an instant that has no end.

    Attributes:
        event_id: unique while the node runs, equal for begin and end.
        query: whose event it is.
        begin_stamp_ns: newest frame of the first answer that counted towards the begin.
        confirmed_stamp_ns: newest frame of the answer that decided this report.
        end_stamp_ns: of an end, newest frame of the first answer that counted towards it; where no answer decided it,
            of the last that counted; else 0.
        probability: of the target in the deciding answer, 0 to 1; without a target, of what it says.
        num_agreed: answers that agreed, of the `num_counted` considered; 0 of 0 where no answer decided it.
        previous: text that was reported before, for on_change; else empty.
        answer: the deciding one; where none decided an end, the last that counted.
    """

    event_id: str
    query: StandingQuery
    phase: Phase
    end_reason: EndReason = EndReason.NONE
    begin_stamp_ns: int
    confirmed_stamp_ns: int
    end_stamp_ns: int = 0
    probability: float
    num_agreed: int
    num_counted: int
    previous: str = ""
    answer: Answer
