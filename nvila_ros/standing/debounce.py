"""N of M: a state is believed once enough of the last answers agree on it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from nvila_ros.standing.observation import Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The believed state became another.

    Attributes:
        state: now.
        previous: before, or None where none was believed yet.
        first: the oldest of the answers that agree.
        num_agreed: how many do.
        num_counted: how many were considered.
    """

    state: str
    previous: str | None
    first: Observation
    num_agreed: int
    num_counted: int


class Debounce:
    """Believes a state once the newest answer and `n` of the last `m` in all agree on it.

    Answers that established one state do not count towards the next, so a state never begins before the one before it
    has ended.
    """

    def __init__(self, n: int, m: int) -> None:
        self._n = n
        self._votes: deque[tuple[str, Observation]] = deque(maxlen=m)
        self._state: str | None = None

    def push(self, state: str, observation: Observation) -> Change | None:
        """Count one answer; returns the change that it makes, if any."""
        self._votes.append((state, observation))
        agreeing = [vote for said, vote in self._votes if said == state]
        if state == self._state or len(agreeing) < self._n:
            return None
        change = Change(
            state=state,
            previous=self._state,
            first=agreeing[0],
            num_agreed=len(agreeing),
            num_counted=len(self._votes),
        )
        self._state = state
        self._votes.clear()
        return change
