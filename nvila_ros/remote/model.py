"""A model that runs on a server: the worker asks it as it asks one of its own, and the node keeps all else.

    frames -> data URIs -> messages -> chat completions, several at once -> pieces, choices, JSON -> answers

Everything but reading from sockets is done on the worker's thread. Requests about one clip, which a model here would
read behind one prefix, go out side by side; the server has caches of its own. A question that the server did not begin
to answer is asked again after a while, and where there is a model to fall back on, that one answers while the server
does not; each answer names what gave it.
"""

from __future__ import annotations

import logging
import queue
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from nvila_ros.errors import BackendError, FrameError, QueryError
from nvila_ros.remote.connection import CallEnded, CallEvent, CallFailed, RemoteCall, RemoteServer
from nvila_ros.remote.conversations import Message, SentConversations, SentTurn
from nvila_ros.remote.dialects import dialect_of, find_dialect
from nvila_ros.remote.dialects.openai import OpenAiDialect
from nvila_ros.remote.pictures import SentPictures
from nvila_ros.remote.question import BACKEND, RemoteQuestion
from nvila_ros.remote.settings import RemoteSettings
from nvila_ros.request import ModelInfo, Request
from nvila_ros.types import NS_PER_S, FinishReason, FrameRef, Query, Stage
from nvila_ros.visual.frame_encoder import FrameLike

LOG = logging.getLogger(__name__)
MAX_CALLS = 8
"""At the server at once; further questions of the same clip wait."""
POLL_S = 0.02
"""How long a cancel or a deadline may go unnoticed while nothing comes."""
AWAY_S = 5.0
"""How long a server that did not answer is left alone, where another model answers meanwhile."""
FIRST_WAIT_S, MAX_WAIT_S = 0.25, 8.0


class LocalModel(Protocol):
    """What is needed of the model to fall back on."""

    info: ModelInfo

    def answer_all(self, requests: Sequence[Request], frames: Sequence[FrameLike]) -> None:
        """Answer requests about the same frames."""

    def warm_up(self) -> None:
        """Run it once."""


class RemoteModel:
    """Answers queries about frames by a server.

    Args:
        settings: of the server.
        fallback: answers while the server does not.
        now_ns: the steady clock.

    Attributes:
        info: what is known of the model before an answer says more.
        frames_per_group: 1, since a server is sent each frame as a picture.
    """

    frames_per_group = 1

    def __init__(
        self,
        settings: RemoteSettings,
        fallback: LocalModel | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.info = ModelInfo(settings.model or "remote", BACKEND, "unknown")
        self._settings, self._fallback, self._now_ns = settings, fallback, now_ns
        self._server, self._pictures = RemoteServer(settings), SentPictures(settings)
        self._conversations = SentConversations()
        self._dialect: OpenAiDialect | None = None
        self._away_until_ns, self._fault = 0, ""
        self._has_usage = True  # until the server says that it does not know `stream_options`
        self._counts = dict.fromkeys(
            ("remote_asked", "remote_asked_again", "remote_failed", "fallback_answers", "prompt_tokens"), 0
        ) | {"prompt_tokens_reused": 0}

    def warm_up(self) -> None:
        """Ask the server which model it has; one that is not there yet is asked again with each question."""
        if self._fallback is not None:
            self._fallback.warm_up()
        try:
            self._identify()
        except BackendError as error:
            self._note_fault(str(error))

    def answer_all(self, requests: Sequence[Request], frames: Sequence[FrameLike]) -> None:
        """Answer requests about the same frames in capture order, each once.

        Raises:
            Exception: as the model to fall back on does; all requests are answered before.
        """
        refs = tuple(FrameRef(stamp_ns=f.stamp_ns, camera=f.camera, frame_id=f.frame_id) for f in frames)
        for request in requests:
            request.begin(self.info, refs, self._now_ns)
            request.enter(Stage.PREPROCESS)
        questions: list[RemoteQuestion] = []
        failed: list[tuple[Request, CallFailed]] = []
        if self._fallback is not None and self._now_ns() < self._away_until_ns:
            failed = [(request, CallFailed(self._fault)) for request in requests]
        else:
            try:
                dialect = self._identify()
                questions = self._prepare(requests, frames, dialect)
            except BackendError as error:
                failed = [(request, CallFailed(str(error))) for request in requests if not request.has_ended]
            self._work(questions)
            for question in questions:
                self._remember(question, refs)
            failed += [(each.request, each.failure) for each in questions if each.failure is not None]
            self._note(failed, has_answered=any(map(_has_answered, questions)))
        self._fall_back(failed, {id(q.request) for q in questions if not q.may_be_asked_again}, frames)

    def has_conversation(self, query: Query) -> bool:
        """Whether a query continues a conversation about the frames that it has."""
        return query.is_follow_up and query.conversation in self._conversations

    def prefetch(self, frame: FrameLike, *, is_alone: bool, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Do nothing: the server sees a frame with its question."""

    def counters(self) -> dict[str, int]:
        """Return how much was asked and how it went, since the model was loaded; from any thread."""
        return {
            **self._counts,
            "pictures_sent": self._pictures.num_written,
            "pictures_sent_again": self._pictures.num_found,
            "conversations": len(self._conversations),
        }

    def remark(self) -> str:
        """Return why the server does not answer, or an empty text; from any thread."""
        return self._fault

    def _identify(self) -> OpenAiDialect:
        """Return how the server is asked; what the parameters leave open it is asked for itself.

        Raises:
            BackendError: it does not say.
        """
        settings = self._settings
        if self._dialect is None:
            name = settings.dialect
            if name == "auto" or not settings.model:
                listed = self._server.models()
                model = next((each for each in listed if each["id"] == settings.model), listed[0])
                name = dialect_of(model) if name == "auto" else name
                self.info = ModelInfo(settings.model or model["id"][:256], BACKEND, "unknown")
            self._dialect = find_dialect(name)
            LOG.info("server=%s dialect=%s model=%s", settings.url, name, self.info.model)
        return self._dialect

    def _prepare(
        self, requests: Sequence[Request], frames: Sequence[FrameLike], dialect: OpenAiDialect
    ) -> list[RemoteQuestion]:
        questions = []
        for request in requests:
            try:
                messages = self._messages(request, frames, dialect)
                questions.append(RemoteQuestion(request, messages, dialect, self.info.model, self._now_ns))
            except QueryError as error:
                request.end(FinishReason.INVALID, str(error))
            except FrameError as error:
                request.end(FinishReason.FAILED, str(error))
            else:
                request.enter(Stage.PREFILL)
        return questions

    def _messages(self, request: Request, frames: Sequence[FrameLike], dialect: OpenAiDialect) -> list[Message]:
        query = request.query
        if not query.question.strip():
            raise QueryError("a question must hold text, got none")
        own = self._user_message(query.question, frames, dialect)
        history = self._conversations.history(query.conversation, _num_bytes(own)) if query.conversation else ()
        known = [frame for turn in history for frame in turn.frames]
        request.frames = tuple(sorted([*known, *request.frames], key=lambda frame: frame.stamp_ns))
        messages: list[Message] = [{"role": "system", "content": query.system}] if query.system else []
        messages += [message for turn in history for message in turn.messages]
        for turn in request.turns:
            messages.append(self._user_message(turn.question, turn.frames, dialect))
            messages.append({"role": "assistant", "content": turn.answer})
        return [*messages, own]

    def _user_message(self, question: str, frames: Sequence[FrameLike], dialect: OpenAiDialect) -> Message:
        parts = [dialect.picture(self._pictures.uri(frame), frame) for frame in frames]
        return {"role": "user", "content": [*parts, {"type": "text", "text": question}] if parts else question}

    def _work(self, questions: Sequence[RemoteQuestion]) -> None:
        """Ask all of them, and go on until each has an answer or has failed for good."""
        events: queue.SimpleQueue[tuple[RemoteQuestion, RemoteCall, CallEvent]] = queue.SimpleQueue()
        try:
            while left := [question for question in questions if not question.is_done]:
                self._start_due(left, events)
                try:
                    question, call, event = events.get(timeout=POLL_S)
                except queue.Empty:
                    pass
                else:
                    if call is question.call and not question.is_done:
                        self._take(question, event)
                for question in left:
                    if not question.is_done:
                        question.request.check()
                    if question.is_done:
                        _let_go(question)
        finally:
            for question in questions:
                _let_go(question)

    def _start_due(self, left: Sequence[RemoteQuestion], events: queue.SimpleQueue[Any]) -> None:
        free = MAX_CALLS - sum(question.call is not None for question in left)
        due = [each for each in left if each.call is None and each.due_ns <= self._now_ns()]
        for question in due[: max(free, 0)]:
            call = RemoteCall(self._server, question.body(has_usage=self._has_usage), partial(_put, events, question))
            self._counts["remote_asked_again" if question.num_calls else "remote_asked"] += 1
            question.begin_call(call)
            call.start()

    def _take(self, question: RemoteQuestion, event: CallEvent) -> None:
        """Take what came of a call."""
        try:
            if isinstance(event, CallEnded):
                question.call = None
                event = question.finish() or event
            elif not isinstance(event, CallFailed):
                question.take(event)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            event = CallFailed(f"{self._settings.url} must send chat completions, got what is none: {error!r}", 200)
        if isinstance(event, CallFailed):
            _let_go(question)
            if event.is_invalid and self._has_usage and "stream_options" in event.text:
                self._has_usage = False
                return
            again = event.is_passing and question.may_be_asked_again and question.num_calls <= self._settings.retries
            if again:
                wait_s = max(
                    min(FIRST_WAIT_S * 2**question.num_calls, MAX_WAIT_S) * random.uniform(0.5, 1), event.wait_s
                )
                question.due_ns = self._now_ns() + round(wait_s * NS_PER_S)
            else:
                question.failure = event

    def _remember(self, question: RemoteQuestion, refs: tuple[FrameRef, ...]) -> None:
        """Count what the server read, and keep the turn of a conversation."""
        answer = question.request.answer
        if answer is None or not answer.finish_reason.is_answered:
            return
        self._counts["prompt_tokens"] += answer.counts.num_prompt_tokens
        self._counts["prompt_tokens_reused"] += answer.counts.num_reused_tokens
        name = question.request.query.conversation
        if name:
            own = question.messages[-1]
            turn = (own, {"role": "assistant", "content": answer.text})
            self._conversations.add(name, SentTurn(turn, refs, _num_bytes(own)))

    def _note(self, failed: Sequence[tuple[Request, CallFailed]], *, has_answered: bool) -> None:
        """Keep in mind whether the server answers; a question that it refuses says nothing against it."""
        faults = [failure.text for _, failure in failed if not failure.is_invalid]
        if faults:
            self._note_fault(faults[0])
        elif has_answered and self._fault:
            LOG.info("server=%s answers again", self._settings.url)
            self._fault = ""

    def _note_fault(self, text: str) -> None:
        self._away_until_ns = self._now_ns() + round(AWAY_S * NS_PER_S)
        if not self._fault:
            meanwhile = f"; {self._fallback.info.model} answers meanwhile" if self._fallback is not None else ""
            LOG.warning("%s%s", text, meanwhile)
        self._fault = text

    def _fall_back(
        self, failed: Sequence[tuple[Request, CallFailed]], begun: set[int], frames: Sequence[FrameLike]
    ) -> None:
        """Answer what the server did not: by the other model, or by the reason."""
        handed = []
        for request, failure in failed:
            if failure.is_invalid:
                request.end(FinishReason.INVALID, failure.text)
            elif self._fallback is None or id(request) in begun:
                self._counts["remote_failed"] += 1
                request.end(FinishReason.FAILED, failure.text)
            else:
                handed.append(request)
        if handed and self._fallback is not None:
            self._counts["fallback_answers"] += len(handed)
            self._fallback.answer_all(handed, frames)


def _has_answered(question: RemoteQuestion) -> bool:
    answer = question.request.answer
    return answer is not None and answer.finish_reason.is_answered


def _put(events: queue.SimpleQueue[Any], question: RemoteQuestion, call: RemoteCall, event: CallEvent) -> None:
    events.put((question, call, event))


def _let_go(question: RemoteQuestion) -> None:
    if question.call is not None:
        question.call.close()
        question.call = None


def _num_bytes(message: Message) -> int:
    """Return the bytes of a message's pictures."""
    parts = message["content"] if isinstance(message["content"], list) else ()
    return sum(len(part["image_url"]["url"]) for part in parts if "image_url" in part)
