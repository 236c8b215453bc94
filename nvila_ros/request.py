"""One query on its way, from the endpoint that took it to its one answer.

An endpoint makes a `Request`; the scheduler, the worker, the pipeline and the generator pass the same object on. The
scheduler owns its place in the queue. Whoever works on it records times, counts and text here, and `end` makes the
answer, which leaves by `on_answer`, exactly once.

A standing query that is preempted runs again: `begin` starts a new attempt and forgets the last one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from nvila_ros.errors import NoFramesError, NvilaError, QueryError
from nvila_ros.prompt.answer_kinds import AnswerKind, parse_kind
from nvila_ros.prompt.text_stream import TextStream
from nvila_ros.types import (
    NS_PER_S,
    Answer,
    Counts,
    FinishReason,
    FrameRef,
    OnAnswer,
    OnPiece,
    Piece,
    Query,
    ShouldStop,
    Stage,
    Timings,
    TokenLogprob,
)
from nvila_ros.video.deferred import DeferredFrame

STOPPED = {
    FinishReason.CANCELED: "canceled before the answer's end",
    FinishReason.DEADLINE: "deadline_s passed before the answer's end",
}
"""The error text of an answer that was stopped."""


class RequestState(enum.Enum):
    """Where a request is; it only moves on, except that a preempted one waits again."""

    NEW = enum.auto()
    HELD = enum.auto()  # in the queue, but not ready: its JSON schema is being tried
    WAITING = enum.auto()
    RUNNING = enum.auto()
    ENDED = enum.auto()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What answers: name of the checkpoint, runtime, numeric format of the weights."""

    model: str
    backend: str
    precision: str


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier exchange that whoever asks brings along."""

    frames: tuple[DeferredFrame, ...]
    question: str
    answer: str


class StopWork(Exception):  # noqa: N818 - not an error: it unwinds work that nobody waits for any more
    """Every request that the work was for has ended."""


class Request:
    """A query, the callbacks of whoever asked, and all that becomes of it.

    Args:
        query: what is asked.
        on_answer: takes the one answer, on the thread that ended it.
        on_piece: takes each piece of text as it comes; the last one is final.
        should_stop: asked before each step and token: the reason to end with, or None to go on.
        turns: what was said before, where the request brings it along.

    Attributes:
        on_end: takes the request instead of `on_answer` once it has its answer; set by a worker under a scheduler.
        state: where it is.
        arrival: its place in the queue; the scheduler's, as are the next four.
        num_passed: how often a later request of the same priority was taken first.
        stop_reason: why it must end at its next step, if it must.
        is_preempted: it was asked to make room for an interactive query.
        was_preempted: it has made room once, and does not again.
        frames: what the answer is about, in capture order.
        counts: how much went in and out.
        choices: what was scored, if anything.
        probabilities: of the choices.
        stream: turns the answer's tokens into text, once decoding has begun.
        answer: the result, once it has ended.
        has_ended: whether this attempt has; of one that was preempted the answer is taken back.
    """

    def __init__(
        self,
        query: Query,
        on_answer: OnAnswer,
        on_piece: OnPiece | None = None,
        *,
        should_stop: ShouldStop | None = None,
        turns: Sequence[Turn] = (),
    ) -> None:
        self.turns = tuple(turns)
        self.query, self.on_answer, self.on_piece, self.should_stop = query, on_answer, on_piece, should_stop
        self.on_end: Callable[[Request], None] | None = None
        self.state = RequestState.NEW
        self.arrival = self.num_passed = 0
        self.stop_reason: FinishReason | None = None
        self.is_preempted = self.was_preempted = False
        self.answer: Answer | None = None
        self.has_ended = False
        self.frames: tuple[FrameRef, ...] = ()
        self._reset()

    @cached_property
    def kind(self) -> AnswerKind:
        """What may be answered; admission sets it, and without one it is parsed when it is first read.

        Raises:
            QueryError: the query's fields do not describe one.
        """
        query = self.query
        return parse_kind(query.answer_type, query.choices, query.minimum, query.maximum, query.json_schema)

    def begin(self, model: ModelInfo, frames: Sequence[FrameRef], now_ns: Callable[[], int]) -> None:
        """Start an attempt.

        Args:
            model: what answers.
            frames: what the answer is about, in capture order.
            now_ns: the steady clock.
        """
        self._reset()
        self._model, self._now_ns, self.frames = model, now_ns, tuple(frames)
        self.has_ended = False
        self._last_ns = now_ns()
        self._accepted_ns = self.query.accepted_ns or self._last_ns
        self._seconds[Stage.QUEUE] = (self._last_ns - self._accepted_ns) / NS_PER_S

    def _reset(self) -> None:
        self.answer, self.counts = None, Counts()
        self.stream: TextStream | None = None
        self.choices: tuple[str, ...] = ()
        self.probabilities: tuple[float, ...] = ()
        self._stage, self._seconds = Stage.VISION, dict.fromkeys(Stage, 0.0)
        self._ttft_s, self._text, self._num_pieces = 0.0, "", 0
        self._logprobs: list[TokenLogprob] = []
        self._num_emitted = 0  # of the logprobs

    def check(self) -> None:
        """End the request if it should stop."""
        reason = self.should_stop() if self.should_stop else None
        if reason is not None:
            self.end(reason, STOPPED[reason])

    def name_model(self, model: ModelInfo) -> None:
        """Say what answers, where that is known only from the answer itself."""
        self._model = model

    def enter(self, stage: Stage) -> None:
        """Add the time so far to the stage that ends here; what follows, up to `end`, belongs to the new one."""
        self.mark(self._stage)
        self._stage = stage

    def mark(self, stage: Stage) -> None:
        """Add the time since the last mark to a stage."""
        now_ns = self._now_ns()
        self._seconds[stage] += (now_ns - self._last_ns) / NS_PER_S
        self._last_ns = now_ns

    def count(self, **counts: int) -> None:
        """Set fields of `counts`."""
        self.counts = replace(self.counts, **counts)

    def count_token(self) -> None:
        """Count one token of the answer."""
        self.count(num_answer_tokens=self.counts.num_answer_tokens + 1)
        self._mark_first()

    def note_logprob(self, logprob: TokenLogprob) -> None:
        """Keep what is known of the answer's next token; it leaves with the next piece."""
        self._logprobs.append(logprob)

    def emit(self, text: str, *, is_final: bool = False) -> None:
        """Pass on a piece of text; an empty one only if it is the last."""
        if text:
            self._mark_first()
        self._text += text
        if self.on_piece and (text or is_final):
            newest = self.frames[-1] if self.frames and not self.query.is_unstamped else None
            index, self._num_pieces = self._num_pieces, self._num_pieces + 1
            query_id, logprobs = self.query.query_id, tuple(self._logprobs[self._num_emitted :])
            self._num_emitted = len(self._logprobs)
            self.on_piece(
                Piece(
                    query_id=query_id,
                    index=index,
                    text=text,
                    is_final=is_final,
                    newest=newest,
                    logprobs=logprobs,
                )
            )

    def end(self, reason: FinishReason, error: str = "") -> None:
        """End the work: pass on the text that the stream held back, close the stage, make the answer and hand it on."""
        assert self.answer is None, "an answer ends once"
        self.has_ended = True
        self.emit(self.stream.flush() if self.stream else "", is_final=True)
        self.mark(self._stage)
        total_s = (self._last_ns - self._accepted_ns) / NS_PER_S
        seconds = {stage.value: spent_s for stage, spent_s in self._seconds.items()}
        self.answer = Answer(
            query=self.query,
            finish_reason=reason,
            error=error,
            text=self._text,
            frames=self.frames,
            choices=self.choices,
            probabilities=self.probabilities,
            logprobs=tuple(self._logprobs),
            timings=Timings(**seconds, ttft_s=self._ttft_s, total_s=total_s),
            counts=self.counts,
            model=self._model.model,
            backend=self._model.backend,
            precision=self._model.precision,
        )
        if self.on_end is not None:
            self.on_end(self)
        else:
            self.deliver()

    def refuse(self, reason: FinishReason, error: str, now_ns: int) -> None:
        """Set the answer to a request on which the model does not work, with the time it waited; not delivered yet."""
        waited_s = (now_ns - self.query.accepted_ns) / NS_PER_S
        timings = Timings(queue_s=waited_s, total_s=waited_s)
        self.answer = Answer(query=self.query, finish_reason=reason, error=error, timings=timings)

    def deliver(self) -> None:
        """Give the answer to whoever asked."""
        assert self.answer is not None, "there is no answer yet"
        self.state = RequestState.ENDED
        self.on_answer(self.answer)

    def take_place_of(self, older: Request) -> None:
        """Stand in the queue where an older evaluation of the same query stood; else none would reach its front."""
        self.arrival, self.num_passed, self.was_preempted = older.arrival, older.num_passed, older.was_preempted

    def _mark_first(self) -> None:
        if not self._ttft_s:
            self._ttft_s = (self._now_ns() - self._accepted_ns) / NS_PER_S


class RequestGroup:
    """Requests that are worked on together; those that have ended are left out."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._all = tuple(requests)

    @property
    def active(self) -> Sequence[Request]:
        """The requests that have not ended; one that was preempted has, though its answer was taken back."""
        return [request for request in self._all if request.answer is None and not request.has_ended]

    def check(self) -> None:
        """End those that should stop.

        Raises:
            StopWork: none is left.
        """
        for request in self.active:
            request.check()
        if not self.active:
            raise StopWork

    def mark(self, stage: Stage) -> None:
        """Add the time since the last mark to a stage of all."""
        for request in self.active:
            request.mark(stage)

    def enter(self, stage: Stage) -> None:
        """Let all enter a stage."""
        for request in self.active:
            request.enter(stage)

    def fail(self, failure: Exception) -> None:
        """End all, since work that they share failed."""
        for request in self.active:
            request.end(*finish_reason_for(failure))


def finish_reason_for(failure: Exception) -> tuple[FinishReason, str]:
    """Return how an answer ends whose work failed, and its error text."""
    if not isinstance(failure, NvilaError):  # the model's runtime may raise anything
        return FinishReason.FAILED, f"{type(failure).__name__}: {failure}"
    by_kind = {NoFramesError: FinishReason.NO_FRAMES, QueryError: FinishReason.INVALID}
    return by_kind.get(type(failure), FinishReason.FAILED), str(failure)
