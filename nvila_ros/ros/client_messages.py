"""Between a client's values and ROS messages: questions out; answers, states and events in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nvila_ros.action import AskVideo
from nvila_ros.errors import QueryError
from nvila_ros.msg import Answer as AnswerMessage
from nvila_ros.msg import Event as EventMessage
from nvila_ros.msg import Status as StatusMessage
from nvila_ros.ros.client_images import image_messages
from nvila_ros.ros.messages import stamp_from_ns, stamp_to_ns
from nvila_ros.serving.model_loader import ModelState, Status
from nvila_ros.serving.query_fields import QueryFields, complete_fields
from nvila_ros.srv import Ask
from nvila_ros.standing.event import EndReason, Phase
from nvila_ros.types import Answer, Counts, FinishReason, FrameRef, Query, Timings

_RANGES = {"uint8": (0, 255), "uint32": (0, (1 << 32) - 1), "int64": (-(1 << 63), (1 << 63) - 1)}
_STAMPS = {"start_ns": "start", "end_ns": "end"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingEvent:
    """An event of a standing query: a begin, the end with the same id, or an instant. Stamps are ns of the ROS clock.

    Attributes:
        event_id: unique in the life of a node; equal for begin and end.
        name: of the standing query.
        question: of the standing query.
        trigger: of the standing query.
        phase: begin, end or instant.
        end_reason: why it ended; NONE where it did not.
        begin_stamp_ns: newest frame of the first answer that counted towards the begin.
        confirmed_stamp_ns: newest frame of the deciding answer.
        end_stamp_ns: of an end, newest frame of the first answer that counted towards it; else 0.
        text: of the deciding answer.
        previous: of on_change, the text reported before.
        probability: of the target, 0 to 1; without a target, of `text`.
        choices: answers that were scored.
        probabilities: of each of `choices`.
        num_agreed: answers that agreed, of `num_counted`.
        num_counted: answers that were looked at.
        frames: of the deciding answer, oldest first.
    """

    event_id: str
    name: str
    question: str
    trigger: str
    phase: Phase
    end_reason: EndReason
    begin_stamp_ns: int
    confirmed_stamp_ns: int
    end_stamp_ns: int
    text: str
    previous: str
    probability: float
    choices: tuple[str, ...]
    probabilities: tuple[float, ...]
    num_agreed: int
    num_counted: int
    frames: tuple[FrameRef, ...]


def ask_message(
    message_type: type[Ask.Request] | type[AskVideo.Goal], question: str, fields: Mapping[str, Any]
) -> tuple[Any, Query]:
    """Return a question as a message, and as the value that its answer will carry.

    Raises:
        QueryError: a field is unknown, of the wrong type, or too large for its message.
    """
    values = complete_fields(fields, QueryFields)
    kinds = message_type.get_fields_and_field_types()
    message = message_type(question=_checked("question", question, "string"))
    for name, value in values.items():
        if name == "images":
            message.images = image_messages(value)
        elif name in _STAMPS:
            setattr(message, _STAMPS[name], stamp_from_ns(_checked(name, value, "int64")))
        else:
            setattr(message, name, _checked(name, value, kinds[name]))
    known = {field.name for field in dataclasses.fields(Query)} - {"images"}
    return message, Query(query_id="", question=question, **{k: v for k, v in values.items() if k in known})


def require_utf8(message: Any) -> None:
    """Refuse texts that no message holds: a command line brings some where the terminal does not write UTF-8.

    Raises:
        QueryError: a text in the message has a character that UTF-8 cannot write.
    """
    for name in message.get_fields_and_field_types():
        value = getattr(message, name)
        for each in value if isinstance(value, list) else [value]:
            if hasattr(each, "get_fields_and_field_types"):
                require_utf8(each)
            elif isinstance(each, str):
                try:
                    each.encode()
                except UnicodeEncodeError as error:
                    raise QueryError(
                        f"{name} must be UTF-8, got bytes that are none at character {error.start}"
                    ) from error


def answer_value(message: AnswerMessage, query: Query) -> Answer:
    """Return an answer as a value.

    Args:
        message: from the node.
        query: as it was asked; what it leaves at 0 was chosen by the node's parameters.
    """
    query = dataclasses.replace(query, query_id=message.query_id, standing=message.standing)
    return Answer(
        query=query,
        finish_reason=FinishReason(message.finish_reason),
        text=message.text,
        error=message.error,
        frames=_frames(message, message.header.frame_id),
        choices=tuple(message.choices),
        probabilities=tuple(map(float, message.probabilities)),
        timings=_same_fields(Timings, message),
        counts=_same_fields(Counts, message),
        model=message.model,
        backend=message.backend,
        precision=message.precision,
        age_s=message.age_s,
    )


def event_value(message: EventMessage) -> StandingEvent:
    """Return an event as a value."""
    return StandingEvent(
        event_id=message.event_id,
        name=message.name,
        question=message.question,
        trigger=message.trigger,
        phase=Phase(message.phase),
        end_reason=EndReason(message.end_reason),
        begin_stamp_ns=stamp_to_ns(message.begin_stamp),
        confirmed_stamp_ns=stamp_to_ns(message.confirmed_stamp),
        end_stamp_ns=stamp_to_ns(message.end_stamp),
        text=message.text,
        previous=message.previous,
        probability=message.probability,
        choices=tuple(message.choices),
        probabilities=tuple(map(float, message.probabilities)),
        num_agreed=message.num_agreed,
        num_counted=message.num_counted,
        frames=_frames(message, message.header.frame_id),
    )


def status_value(message: StatusMessage) -> Status:
    """Return the state of the node's model as a value."""
    return Status(
        state=ModelState(message.state),
        progress=message.progress,
        part=message.part,
        text=message.text,
        model=message.model,
        backend=message.backend,
        precision=message.precision,
    )


def _frames(message: AnswerMessage | EventMessage, frame_id: str) -> tuple[FrameRef, ...]:
    """Return the frames of a message; it has the tf frame of the newest one's camera alone."""
    refs = zip(message.stamps, message.cameras, strict=True)
    newest = message.cameras[-1] if message.cameras else ""
    return tuple(
        FrameRef(stamp_ns=stamp_to_ns(stamp), camera=camera, frame_id=frame_id if camera == newest else "")
        for stamp, camera in refs
    )


def _same_fields(value_type: Any, message: AnswerMessage) -> Any:
    return value_type(**{field.name: getattr(message, field.name) for field in dataclasses.fields(value_type)})


def _checked(name: str, value: Any, kind: str) -> Any:
    """Return a field's value as its message takes it.

    Raises:
        QueryError: the value is of another type, or outside the type's range.
    """
    if kind in _RANGES:
        low, high = _RANGES[kind]
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise QueryError(f"{name} must be a whole number in [{low}, {high}], got {value!r}")
    if kind == "float":
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        raise QueryError(f"{name} must be a finite number, got {value!r}")
    texts = [value] if kind == "string" else value
    if not all(isinstance(text, str) for text in texts):
        raise QueryError(f"{name} must be {'text' if kind == 'string' else 'a list of texts'}, got {value!r}")
    return value if kind == "string" else list(value)
