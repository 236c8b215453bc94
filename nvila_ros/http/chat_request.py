"""The body of a chat completion to a query: checked, with what it ignores named."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvila_ros.config import NodeConfig, bounds
from nvila_ros.http import fields
from nvila_ros.http.answer_format import AnswerFormat, read_format
from nvila_ros.http.errors import ApiError
from nvila_ros.http.fields import invalid
from nvila_ros.http.limits import MAX_MESSAGES, MAX_STOP_BYTES, MAX_STOPS, MAX_TEXT_BYTES, MAX_TOP_LOGPROBS
from nvila_ros.http.media_parts import MediaReader, ShownMedia
from nvila_ros.request import Turn
from nvila_ros.serving.admission import MAX_PRIORITY
from nvila_ros.serving.answering import Answering
from nvila_ros.types import NS_PER_S, Query
from nvila_ros.video.deferred import DeferredFrame

LIVE_MODEL = "live"
"""Model name under which a question without pictures is about the robot's own newest frames."""
MAX_DEADLINE_S = 3600.0
IMAGE_KINDS = ("image_url", "video_url")
_KNOWN = frozenset(
    {
        "answer_type",
        "conversation",
        "deadline_s",
        "guided_choice",
        "guided_decoding",
        "guided_json",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "messages",
        "metadata",
        "modalities",
        "model",
        "n",
        "parallel_tool_calls",
        "priority",
        "response_format",
        "stop",
        "store",
        "stream",
        "stream_options",
        "structured_outputs",
        "tool_choice",
        "tools",
        "top_logprobs",
        "user",
    }
)
_RANGES = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (-1, 1 << 31),
    "min_p": (0, 1),
    "seed": (-(1 << 63), 1 << 64),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0, 10),
}
"""How a token is drawn, and with which luck; here it is always the likeliest one."""
_ROLES = ("system", "developer", "user", "assistant")
MAX_IGNORED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A request, ready to be asked.

    Attributes:
        query: what is asked.
        turns: what was said before.
        form: how the answer is written.
        ignored: fields that change nothing.
        is_stream: in pieces, as they come.
        has_usage: the stream ends with counts of tokens.
    """

    query: Query
    turns: tuple[Turn, ...]
    form: AnswerFormat
    ignored: tuple[str, ...]
    is_stream: bool
    has_usage: bool


@dataclass(frozen=True, slots=True)
class _Message:
    role: str
    text: str
    media: ShownMedia


def read_chat(body: Mapping[str, Any], answering: Answering, deadline_s: float | None = None) -> ChatRequest:
    """Return the query of a body.

    Args:
        body: of the request.
        answering: names query and frames.
        deadline_s: of a header; the field comes first.

    Raises:
        ApiError: a field breaks its rule.
    """
    _refuse_unsupported(body)
    reader = MediaReader(answering.buffer)
    messages = _messages(body, reader)
    talk = [message for message in messages if message.role in ("user", "assistant")]
    if not talk or talk[-1].role != "user":
        raise invalid("messages", "a conversation that ends with a message of the user", [m.role for m in talk[-2:]])
    form, is_kept = read_format(body), bool(body.get("conversation"))
    system = "\n".join(message.text for message in messages if message.role in ("system", "developer"))
    fields_of_frames = _frames_of(talk[-1].media, body, reader, answering.config())
    return ChatRequest(
        query=Query(
            query_id=answering.new_id(),
            question=talk[-1].text,
            system=system,
            **fields_of_frames,
            **_limits_of(body, answering.config(), deadline_s),
            **form.fields,
        ),
        turns=() if is_kept else _turns(talk[:-1], answering),
        form=form,
        ignored=_ignored(body, talk[:-1], is_kept=is_kept),
        is_stream=fields.flag(body, "stream"),
        has_usage=fields.flag(fields.mapping(body, "stream_options"), "include_usage"),
    )


def _limits_of(body: Mapping[str, Any], config: NodeConfig, deadline_s: float | None) -> dict[str, Any]:
    """Return the fields of a query that say when it is answered, and where its answer ends."""
    now_ns = time.monotonic_ns()
    seconds = fields.number(body, "deadline_s", 0.001, MAX_DEADLINE_S) or deadline_s
    return {
        "priority": fields.integer(body, "priority", 0, MAX_PRIORITY) or 0,
        "stop": _stops(body),
        "top_logprobs": _top_logprobs(body),
        "max_tokens": _max_tokens(body, config),
        "accepted_ns": now_ns,
        "deadline_ns": now_ns + round(seconds * NS_PER_S) if seconds else None,
    }


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Refuse by name what would change an answer and is not done here."""
    if (fields.integer(body, "n", 1, 128) or 1) != 1:
        raise ApiError(400, "n must be 1: answers are not drawn at random", param="n", code="unsupported")
    for name in ("tools", "functions", "logit_bias"):
        if body.get(name):
            raise ApiError(400, f"{name} is not supported; leave it out", param=name, code="unsupported")
    for name, (low, high) in _RANGES.items():
        fields.number(body, name, low, high)
    fields.text(body, "model")


def _messages(body: Mapping[str, Any], reader: MediaReader) -> list[_Message]:
    given = body.get("messages")
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_MESSAGES:
        raise invalid("messages", f"a list of 1 to {MAX_MESSAGES} messages", given)
    messages = [_message(message, f"messages[{i}]", reader) for i, message in enumerate(given)]
    num_bytes = sum(len(message.text.encode()) for message in messages)
    if num_bytes > MAX_TEXT_BYTES:
        raise invalid("messages", f"at most {MAX_TEXT_BYTES} bytes of text together", num_bytes)
    return messages


def _message(given: Any, param: str, reader: MediaReader) -> _Message:
    if not isinstance(given, dict) or given.get("role") not in _ROLES:
        raise invalid(param, f"an object whose role is one of {list(_ROLES)}", given)
    content = given.get("content")
    if isinstance(content, str):
        return _Message(given["role"], fields.text(given, "content"), ShownMedia())
    if content is None and given["role"] == "assistant":
        return _Message("assistant", "", ShownMedia())
    if not isinstance(content, list):
        raise invalid(f"{param}.content", "a text or a list of parts", content)
    texts, media = [], ShownMedia()
    for i, part in enumerate(content):
        at = f"{param}.content[{i}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            texts.append(fields.text(part, "text"))
        elif kind in IMAGE_KINDS and given["role"] == "user":
            _add(media, reader.read(part, at), at)
        else:
            raise invalid(at, f"a part of type text, {' or '.join(IMAGE_KINDS)}; pictures are the user's", part)
    return _Message(given["role"], "\n".join(filter(None, texts)), media)


def _add(media: ShownMedia, more: ShownMedia, param: str) -> None:
    """Show more in a message: pictures one after the other, and one window of the robot's own frames."""
    media.images += more.images
    if more.window is None:
        if media.window is not None:
            raise _mixed(param)
        return
    if media.images:
        raise _mixed(param)
    cameras = (media.window or {}).get("cameras", ())
    if media.window is not None and {**media.window, "cameras": ()} != {**more.window, "cameras": ()}:
        raise invalid(param, "an address with the same window as the one before", more.window)
    media.window = {**more.window, "cameras": (*cameras, *more.window.get("cameras", ()))}


def _mixed(param: str) -> ApiError:
    rule = "must show pictures or live frames, not both; name single frames as nvila:frame/NAME/STAMP_NS"
    return ApiError(400, f"a message {rule}", param=param, code="conflict")


def _frames_of(media: ShownMedia, body: Mapping[str, Any], reader: MediaReader, config: NodeConfig) -> dict[str, Any]:
    """Return the fields of a query that choose its frames; what an address leaves out is the parameters'."""
    conversation = fields.text(body, "conversation")
    found: dict[str, Any] = {
        "conversation": conversation,
        "is_unstamped": reader.num_images > 0 and not reader.has_stamps,
    }
    if media.images:
        return found | {"images": reader.in_order(media.images), "num_frames": 0, "sampling": ""}
    window = media.window or {}
    cameras = window.get("cameras") or config.cameras
    is_follow_up = bool(conversation) and media.window is None
    return {
        **found,
        "num_frames": config.num_frames_of(cameras, str(body.get("answer_type") or "")),
        "window_s": config.window_s,
        **window,
        "cameras": cameras,
        "is_follow_up": is_follow_up,
        "is_blind": media.window is None and not is_follow_up and body.get("model") != LIVE_MODEL,
    }


def _turns(talk: Sequence[_Message], answering: Answering) -> tuple[Turn, ...]:
    """Return earlier messages as turns; several of one side in a row are one."""
    turns: list[Turn] = []
    frames: list[DeferredFrame] = []
    question: list[str] = []
    answer: list[str] = []
    for message in [*talk, _Message("user", "", ShownMedia())]:
        if message.role == "user" and answer:
            turns.append(Turn(tuple(frames), "\n".join(question) or "?", "\n".join(answer)))
            frames, question, answer = [], [], []
        if message.role == "assistant":
            answer.append(message.text)
        else:
            question.append(message.text)
            frames += [DeferredFrame(raw, answering.decode) for raw in message.media.images]
    return tuple(turns)


def _stops(body: Mapping[str, Any]) -> tuple[str, ...]:
    value = body.get("stop")
    if value is None or value == []:
        return ()
    stops = fields.texts([value] if isinstance(value, str) else value, "stop", MAX_STOPS)
    if any(len(stop.encode()) > MAX_STOP_BYTES for stop in stops):
        raise invalid("stop", f"texts of at most {MAX_STOP_BYTES} bytes", stops)
    return stops


def _top_logprobs(body: Mapping[str, Any]) -> int | None:
    top = fields.integer(body, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if fields.flag(body, "logprobs"):
        return top or 0
    if top:
        raise invalid("top_logprobs", "left out while logprobs is not true", top)
    return None


def _max_tokens(body: Mapping[str, Any], config: NodeConfig) -> int:
    most = int(bounds(NodeConfig)["max_tokens"].high or 0)
    asked = [fields.integer(body, name, 1, most) for name in ("max_completion_tokens", "max_tokens")]
    return next((number for number in asked if number is not None), config.max_tokens)


def _ignored(body: Mapping[str, Any], earlier: Sequence[_Message], *, is_kept: bool) -> tuple[str, ...]:
    """Return what changes nothing, by name."""
    unknown = sorted(name[:40] for name in body.keys() - _KNOWN - _RANGES.keys())
    drawn = [name for name in _RANGES if body.get(name) not in (None, 0, 1)]
    live = ["live frames of earlier messages"] if any(message.media.window is not None for message in earlier) else []
    kept = ["earlier messages, since conversation is given"] if is_kept and earlier else []
    return (*unknown[:MAX_IGNORED], *drawn, *live, *kept)
