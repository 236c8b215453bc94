"""The triggers: readings of one standing query in, events out.

`rising` and `falling` watch a condition, which is that the target is probable enough, and tell its begin and its end.
`on_change` and `every` tell instants. Rising begins also where the condition holds from the start, since a robot that
is switched on in front of a fire must say so; falling needs to have seen it hold, since what was never there was not
lost. A begin that falls into the cooldown is told when that is over, if it is still true then.
"""

from __future__ import annotations

from collections.abc import Callable

from nvila_ros.standing.debounce import Change, Debounce
from nvila_ros.standing.event import EndReason, Event, Phase
from nvila_ros.standing.observation import Reading
from nvila_ros.standing.query import StandingQuery
from nvila_ros.types import NS_PER_S

UP, DOWN = "up", "down"


class Watch:
    """What is known of one standing query, and its open event.

    Args:
        query: checked.
        new_id: returns an event id that was never used.

    Attributes:
        last: the last reading, or None where nothing is known.
        open_event: the event that has begun and not ended.
    """

    def __init__(self, query: StandingQuery, new_id: Callable[[], str]) -> None:
        self._query, self._new_id = query, new_id
        self._cooldown_ns = round(query.cooldown_s * NS_PER_S)
        self._last_begin_ns: int | None = None
        self._clear()

    def _clear(self) -> None:
        self._debounce = Debounce(self._query.debounce_n, self._query.debounce_m)
        self._is_up = False
        self._cause: Change | None = None  # of the begin or instant that is still to be told
        self._told: Reading | None = None
        self.last: Reading | None = None
        self.open_event: Event | None = None

    def push(self, reading: Reading) -> list[Event]:
        """Take one reading; its stamp must lie after the last one's."""
        self.last = reading
        state = self._state(reading)
        change = self._change(state, reading)
        events = []
        if change is not None:
            self._cause = change if self._is_begun_by(change) else None
            if self.open_event is not None:
                events.append(self._end(EndReason.OVER, reading, change))
        if self._cause is not None and self._cause.state == state and self._is_cool(reading.stamp_ns):
            events.append(self._begin(self._cause, reading))
        return events

    def forget(self, reason: EndReason) -> list[Event]:
        """Know nothing any more; an open event ends. The cooldown goes on, unless time itself jumped."""
        events = []
        if self.open_event is not None:
            assert self.last is not None, "an event is open that no answer began"
            events.append(self._end(reason, self.last))
        self._clear()
        if reason is EndReason.TIME_JUMP:
            self._last_begin_ns = None
        return events

    def _state(self, reading: Reading) -> str:
        query = self._query
        if not query.has_condition:
            return reading.value
        limit = query.threshold - query.hysteresis if self._is_up else query.threshold
        self._is_up = reading.probability >= limit
        return UP if self._is_up else DOWN

    def _change(self, state: str, reading: Reading) -> Change | None:
        if self._query.trigger == "every":
            return Change(state=state, previous=None, first=reading, num_agreed=1, num_counted=1)
        return self._debounce.push(state, reading)

    def _is_begun_by(self, change: Change) -> bool:
        if self._query.trigger == "rising":
            return change.state == UP
        if self._query.trigger == "falling":
            return change.state == DOWN and change.previous == UP
        return self._query.trigger == "every" or self._told is None or change.state != self._told.value

    def _is_cool(self, stamp_ns: int) -> bool:
        return self._last_begin_ns is None or stamp_ns - self._last_begin_ns >= self._cooldown_ns

    def _begin(self, cause: Change, reading: Reading) -> Event:
        has_end = self._query.has_condition
        previous = self._told.answer.text if self._told is not None and self._query.trigger == "on_change" else ""
        event = Event(
            event_id=self._new_id(),
            query=self._query,
            phase=Phase.BEGIN if has_end else Phase.INSTANT,
            begin_stamp_ns=cause.first.stamp_ns,
            confirmed_stamp_ns=reading.stamp_ns,
            probability=reading.probability,
            num_agreed=cause.num_agreed,
            num_counted=cause.num_counted,
            previous=previous,
            answer=reading.answer,
        )
        self._cause, self._told, self._last_begin_ns = None, reading, reading.stamp_ns
        self.open_event = event if has_end else None
        return event

    def _end(self, reason: EndReason, reading: Reading, change: Change | None = None) -> Event:
        begin, self.open_event = self.open_event, None
        assert begin is not None, "no event is open"
        return Event(
            event_id=begin.event_id,
            query=self._query,
            phase=Phase.END,
            end_reason=reason,
            begin_stamp_ns=begin.begin_stamp_ns,
            confirmed_stamp_ns=reading.stamp_ns,
            end_stamp_ns=change.first.stamp_ns if change else reading.stamp_ns,
            probability=reading.probability,
            num_agreed=change.num_agreed if change else 0,
            num_counted=change.num_counted if change else 0,
            answer=reading.answer,
        )
