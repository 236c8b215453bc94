"""The triggers: observations of one standing query in, events out.

`rising` and `falling` watch a condition, that the target is probable enough, and report its begin and its end.
`on_change` and `every` report instants. Rising begins also where the condition holds from the start, since a robot that
is switched on in front of a fire must say so; falling needs to have seen it hold, since what was never there was not
lost. A begin that falls into the cooldown is reported when that is over, if it is still true then.
"""

from __future__ import annotations

from collections.abc import Callable

from nvila_ros.standing.debounce import Change, Debounce
from nvila_ros.standing.event import EndReason, Event, Phase
from nvila_ros.standing.observation import Observation
from nvila_ros.standing.query import StandingQuery
from nvila_ros.types import NS_PER_S

UP, DOWN = "up", "down"


class TriggerState:
    """What is known of one standing query, and its open event.

    Args:
        query: checked.
        new_id: returns an event id that was never used.

    Attributes:
        last: the last observation, or None where nothing is known.
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
        self._cause: Change | None = None  # of the begin or instant that is still to be reported
        self._reported: Observation | None = None
        self.last: Observation | None = None
        self.open_event: Event | None = None

    def push(self, observation: Observation) -> list[Event]:
        """Take one observation; its stamp must lie after the last one's."""
        self.last = observation
        state = self._state(observation)
        change = self._change(state, observation)
        events = []
        if change is not None:
            self._cause = change if self._is_begun_by(change) else None
            if self.open_event is not None:
                events.append(self._end(EndReason.OVER, observation, change))
        if self._cause is not None and self._cause.state == state and self._is_cool(observation.stamp_ns):
            events.append(self._begin(self._cause, observation))
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

    def _state(self, observation: Observation) -> str:
        query = self._query
        if not query.has_condition:
            return observation.value
        limit = query.threshold - query.hysteresis if self._is_up else query.threshold
        self._is_up = observation.probability >= limit
        return UP if self._is_up else DOWN

    def _change(self, state: str, observation: Observation) -> Change | None:
        if self._query.trigger == "every":
            return Change(state=state, previous=None, first=observation, num_agreed=1, num_counted=1)
        return self._debounce.push(state, observation)

    def _is_begun_by(self, change: Change) -> bool:
        if self._query.trigger == "rising":
            return change.state == UP
        if self._query.trigger == "falling":
            return change.state == DOWN and change.previous == UP
        return self._query.trigger == "every" or self._reported is None or change.state != self._reported.value

    def _is_cool(self, stamp_ns: int) -> bool:
        return self._last_begin_ns is None or stamp_ns - self._last_begin_ns >= self._cooldown_ns

    def _begin(self, cause: Change, observation: Observation) -> Event:
        has_end = self._query.has_condition
        previous = (
            self._reported.answer.text if self._reported is not None and self._query.trigger == "on_change" else ""
        )
        event = Event(
            event_id=self._new_id(),
            query=self._query,
            phase=Phase.BEGIN if has_end else Phase.INSTANT,
            begin_stamp_ns=cause.first.stamp_ns,
            confirmed_stamp_ns=observation.stamp_ns,
            probability=observation.probability,
            num_agreed=cause.num_agreed,
            num_counted=cause.num_counted,
            previous=previous,
            answer=observation.answer,
        )
        self._cause, self._reported, self._last_begin_ns = None, observation, observation.stamp_ns
        self.open_event = event if has_end else None
        return event

    def _end(self, reason: EndReason, observation: Observation, change: Change | None = None) -> Event:
        begin, self.open_event = self.open_event, None
        assert begin is not None, "no event is open"
        return Event(
            event_id=begin.event_id,
            query=self._query,
            phase=Phase.END,
            end_reason=reason,
            begin_stamp_ns=begin.begin_stamp_ns,
            confirmed_stamp_ns=observation.stamp_ns,
            end_stamp_ns=change.first.stamp_ns if change else observation.stamp_ns,
            probability=observation.probability,
            num_agreed=change.num_agreed if change else 0,
            num_counted=change.num_counted if change else 0,
            answer=observation.answer,
        )
