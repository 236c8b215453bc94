"""The keywords by which Python programs ask, and the one rule of what comes back: an answer, or an exception.

The model in this process (`serving.model`) takes `AnswerFields`; a client of the node (`ros.client`), which also
chooses frames and limits, takes `QueryFields`. Names and meaning are those of `srv/Ask`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from nvila_ros.errors import NoFramesError, QueryError, UnansweredError, shown
from nvila_ros.types import Answer, FinishReason


class AnswerFields(TypedDict, total=False):
    """What may be answered, and how long.

    Attributes:
        choices: the only answers allowed; each gets a probability.
        answer_type: text, yes_no, choices, integer, json, when or tool; by default as the other fields imply.
        minimum: the least integer allowed.
        maximum: the greatest integer allowed.
        json_schema: what a JSON answer keeps to, as JSON text or as the dictionary itself.
        max_tokens: the longest answer, tokens.
        conversation: id of a conversation that this begins or continues.
    """

    choices: Sequence[str]
    answer_type: str
    minimum: int
    maximum: int
    json_schema: str | Mapping[str, Any]
    max_tokens: int
    conversation: str


class QueryFields(AnswerFields, total=False):
    """The frames to look at, and the limits of the answer; what is left out is chosen by the node's parameters.

    Attributes:
        num_frames: frames sampled from the window.
        window_s: length of the window that ends with the newest frame, s.
        start_ns: oldest capture, ns of the ROS clock; goes with `end_ns`.
        end_ns: newest capture.
        ago_start_s: where the window begins, s before the newest frame.
        ago_end_s: where the window ends, s before the newest frame.
        sampling: uniform, recent, change or anchored.
        cameras: names of the cameras; by default all.
        images: pictures in place of the cameras' frames, oldest first: files by path or content, images (H, W, 3)
            uint8 RGB, `Frame` values, or messages sensor_msgs/CompressedImage. None of the fields above goes with them.
        deadline_s: the answer is cut this long after the node accepted it, s.
        priority: higher is answered first; 0 to 255.
    """

    num_frames: int
    window_s: float
    start_ns: int
    end_ns: int
    ago_start_s: float
    ago_end_s: float
    sampling: str
    cameras: Sequence[str]
    images: Sequence[Any]
    deadline_s: float
    priority: int


def complete_fields(fields: Mapping[str, Any], known: type) -> dict[str, Any]:
    """Return fields as plain values: lists as tuples, a schema as JSON text, the answer type that the others imply.

    Args:
        fields: as they were given by name.
        known: `AnswerFields` or `QueryFields`.

    Raises:
        QueryError: an unknown name (near names are listed), or one text where a list of texts belongs.
    """
    names = _names(known)
    for name in fields:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3) or sorted(names)
            raise QueryError(f"unknown field {name!r}; did you mean one of {near}")
    values = {name: _plain(name, value) for name, value in fields.items()}
    if not values.get("answer_type"):
        values["answer_type"] = _implied_type(values)
    return values


def require_answer(answer: Answer) -> Answer:
    """Return an answer that was given.

    Raises:
        QueryError: the question breaks a rule.
        NoFramesError: the window held no frame.
        UnansweredError: it was rejected, canceled, came too late, or the model failed; has the answer.
    """
    if answer.finish_reason.is_answered:
        return answer
    text = f"{answer.finish_reason.name}: {answer.error or 'no reason was given'}"
    if answer.finish_reason is FinishReason.INVALID:
        raise QueryError(answer.error or text)
    if answer.finish_reason is FinishReason.NO_FRAMES:
        raise NoFramesError(answer.error or text)
    raise UnansweredError(text, answer)


def _names(known: type) -> set[str]:
    return {name for base in (AnswerFields, known) for name in base.__annotations__}


def _plain(name: str, value: Any) -> Any:
    if name in ("choices", "cameras") and isinstance(value, str):
        raise QueryError(f"{name} must be a list of texts, got the one text {shown(value)}; write [{shown(value)}]")
    if name == "images" and (isinstance(value, str | bytes) or not isinstance(value, Iterable)):
        raise QueryError(f"images must be a list of pictures, got {shown(value)}; write [{shown(value)}]")
    if name in ("choices", "cameras", "images"):
        return tuple(value)
    if name == "json_schema" and not isinstance(value, str):
        return json.dumps(value)
    return value


def _implied_type(values: Mapping[str, Any]) -> str:
    """Return the answer type that the other fields imply; empty leaves it to choices or free text."""
    if values.get("json_schema"):
        return "json"
    return "integer" if values.get("minimum") or values.get("maximum") else ""
