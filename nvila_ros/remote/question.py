"""One request on its way to the server and back: its body, its attempts, and what its answer becomes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nvila_ros.prompt.answer_kinds import Constrained, Located, Scored
from nvila_ros.remote.choices import spelling_shares
from nvila_ros.remote.connection import CallFailed, RemoteCall
from nvila_ros.remote.conversations import Message
from nvila_ros.remote.dialects.openai import HeldAnswer, OpenAiDialect
from nvila_ros.remote.reply import END_BY_NAME, RemoteReply
from nvila_ros.request import ModelInfo, Request
from nvila_ros.types import NS_PER_S, FinishReason, Stage

TOP_LOGPROBS = 20
"""Of a scored answer: the most that OpenAI's API gives."""
CHOICE_ROOM = 32
"""Tokens around a choice: of the object in which it is a value, and the end. A byte is at most one."""
BACKEND = "remote"


class RemoteQuestion:
    """A request that a server answers; used on the worker's thread.

    Args:
        request: begun.
        messages: of the request, the earlier ones and its own.
        dialect: of the server.
        model: name in the request.
        now_ns: the steady clock.

    Raises:
        QueryError: the server cannot be held to what may be answered.

    Attributes:
        messages: as given.
        call: in progress, or None.
        num_calls: made so far.
        due_ns: when the next is to be made.
        failure: why it has no answer, once it has failed for good; the request has not ended then.
    """

    def __init__(
        self,
        request: Request,
        messages: Sequence[Message],
        dialect: OpenAiDialect,
        model: str,
        now_ns: Callable[[], int],
    ) -> None:
        self.request, self._dialect, self._model, self._now_ns = request, dialect, model, now_ns
        self.messages = messages
        self._held: HeldAnswer = dialect.hold(request.query, request.kind)
        self.call: RemoteCall | None = None
        self.num_calls = self.due_ns = 0
        self.failure: CallFailed | None = None
        self._reply = RemoteReply()
        self._has_emitted = False

    @property
    def is_done(self) -> bool:
        """Whether nothing more is to come."""
        return self.failure is not None or self.request.has_ended

    @property
    def may_be_asked_again(self) -> bool:
        """Whether nobody has heard of an answer yet."""
        return not self._has_emitted

    def body(self, *, has_usage: bool = True) -> bytes:
        """Return the body of a call that is made now; it asks for counts of tokens unless the server refuses that."""
        query, dialect = self.request.query, self._dialect
        deadline_ns = query.deadline_ns
        remaining_s = None if deadline_ns is None else (deadline_ns - self._now_ns()) / NS_PER_S
        top = query.top_logprobs if not isinstance(self.request.kind, Scored) else TOP_LOGPROBS
        return json.dumps(
            {
                "model": self._model,
                "messages": list(self.messages),
                "stream": True,
                **({"stream_options": {"include_usage": True}} if has_usage else {}),
                "temperature": 0,
                dialect.token_limit: self._max_tokens(),
                **({"stop": list(query.stop)} if query.stop else {}),
                **({} if top is None else {"logprobs": True}),
                **({"top_logprobs": top} if top else {}),
                **self._held.fields,
                **dialect.extra(query, remaining_s),
            }
        ).encode()

    def _max_tokens(self) -> int:
        """Return how long the answer may be: one of choices as long as the longest of them, whatever was asked."""
        if not isinstance(self.request.kind, Scored):
            return self.request.query.max_tokens
        return max(len(text.encode()) for text in self.request.kind.spellings) + CHOICE_ROOM

    def begin_call(self, call: RemoteCall) -> None:
        """Take a call that is about to start."""
        self.call, self._reply = call, RemoteReply()
        self.num_calls += 1

    def take(self, chunk: Mapping[str, Any]) -> None:
        """Take a chunk, and pass its text on where pieces of it are pieces of the answer."""
        text, tokens = self._reply.take(chunk)
        self._dialect.read(chunk, self._reply)
        if (text or tokens) and not self._reply.content[len(text) :]:
            self.request.enter(Stage.DECODE)
        if self._held.is_pieced:
            for token in tokens if self.request.query.top_logprobs is not None else ():
                self.request.note_logprob(token)
            self._has_emitted |= bool(text)
            self.request.emit(text)

    def finish(self) -> CallFailed | None:
        """End the request with what the server answered; or return why that is no answer."""
        reply, request = self._reply, self.request
        if not reply.end:
            return CallFailed("the server ended its answer before it was whole")
        reason = END_BY_NAME.get(reply.end)
        if reason is None:
            return CallFailed(f"the server ended its answer with finish_reason {reply.end!r}", 200)
        request.name_model(ModelInfo(reply.model or self._model, BACKEND, reply.precision or "unknown"))
        request.count(**reply.counts)
        if reply.stamps is not None:
            shown = set(reply.stamps)
            request.frames = tuple(f for f in request.frames if (f.camera, f.stamp_ns) in shown) or request.frames
        fault = self._take_value(reason)
        if fault:
            return CallFailed(fault, 200)
        request.end(reason)
        return None

    def _take_value(self, reason: FinishReason) -> str:
        """Set what was answered, where that does not come in pieces; returns why it is no answer, or nothing."""
        kind, reply = self.request.kind, self._reply
        text = reply.text if reply.text is not None else self._held.read(reply.content)
        if isinstance(kind, Scored):
            return self._take_choice(kind, text)
        if isinstance(kind, Located) and reply.scored:
            self.request.choices, self.request.probabilities = zip(*reply.scored, strict=True)
        if isinstance(kind, Constrained) and reason is FinishReason.STOP and not _is_json(text):
            return f"the server must answer in JSON of the schema, got {text[:80]!r}"
        if not self._held.is_pieced:
            self.request.emit(text)
        return ""

    def _take_choice(self, kind: Scored, text: str) -> str:
        shares = self._shares(kind)
        if shares is None:
            owner = next((i for i, spelling in zip(kind.owners, kind.spellings, strict=True) if spelling == text), None)
            if owner is None:
                return f"the server must answer one of {list(kind.names)[:8]}, got {text[:80]!r}"
            self.request.emit(kind.names[owner])  # without probabilities: none were reported
            return ""
        self.request.choices = kind.names
        self.request.probabilities = tuple(map(float, shares))
        self.request.emit(kind.names[int(np.argmax(shares))])
        return ""

    def _shares(self, kind: Scored) -> np.ndarray | None:
        """Return the probability of each choice; None where the server reports none."""
        reply = self._reply
        if [name for name, _ in reply.scored] == list(kind.names):
            return np.array([share for _, share in reply.scored])
        if not any(token.top for token in reply.tokens):
            return None
        num_skipped = self._held.num_skipped(reply.content)
        shares = spelling_shares(self._held.written, reply.tokens, num_skipped) if self._held.written else None
        return None if shares is None else kind.combine(shares)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
