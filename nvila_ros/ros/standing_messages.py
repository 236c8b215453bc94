"""Between ROS messages and standing queries: queries in, events and states out.

A `StandingQuery` message has the fields of the value, and its defaults, so that a field left alone means the same by
service and by file.
"""

from __future__ import annotations

import dataclasses

from std_msgs.msg import Header

from nvila_ros.msg import Event as EventMessage
from nvila_ros.msg import StandingQuery as StandingQueryMessage
from nvila_ros.msg import StandingState as StandingStateMessage
from nvila_ros.ros.messages import stamp_from_ns
from nvila_ros.standing.event import Event
from nvila_ros.standing.listing import query_from_dict
from nvila_ros.standing.query import StandingQuery
from nvila_ros.standing.registry import StandingState

_FIELDS = tuple(field.name for field in dataclasses.fields(StandingQuery))


def query_from_message(message: StandingQueryMessage) -> StandingQuery:
    """Return the query of a message.

    Raises:
        ConfigError: a value outside its rule.
    """
    return query_from_dict({name: getattr(message, name) for name in _FIELDS})


def query_message(query: StandingQuery) -> StandingQueryMessage:
    """Return a query as a message."""
    values = {name: getattr(query, name) for name in _FIELDS}
    return StandingQueryMessage(**{k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})


def event_message(event: Event) -> EventMessage:
    """Return an event for publication."""
    query, answer = event.query, event.answer
    newest = answer.frames[-1]
    return EventMessage(
        header=Header(stamp=stamp_from_ns(newest.stamp_ns), frame_id=newest.frame_id),
        event_id=event.event_id,
        name=query.name,
        question=query.question,
        trigger=query.trigger,
        phase=int(event.phase),
        end_reason=int(event.end_reason),
        begin_stamp=stamp_from_ns(event.begin_stamp_ns),
        confirmed_stamp=stamp_from_ns(event.confirmed_stamp_ns),
        end_stamp=stamp_from_ns(event.end_stamp_ns),
        query_id=answer.query.query_id,
        text=answer.text,
        previous=event.previous,
        probability=event.probability,
        choices=list(answer.choices),
        probabilities=list(answer.probabilities),
        num_agreed=event.num_agreed,
        num_counted=event.num_counted,
        stamps=[stamp_from_ns(frame.stamp_ns) for frame in answer.frames],
        cameras=[frame.camera for frame in answer.frames],
    )


def state_message(state: StandingState) -> StandingStateMessage:
    """Return how a query stands."""
    answer = state.answer
    return StandingStateMessage(
        query=query_message(state.query),
        **dataclasses.asdict(state.counts),
        open_event_id=state.open_event.event_id if state.open_event else "",
        text=answer.text if answer else "",
        finish_reason=int(state.last_reason),
        error=state.last_error,
        text_stamp=stamp_from_ns(answer.frames[-1].stamp_ns if answer else 0),
    )
