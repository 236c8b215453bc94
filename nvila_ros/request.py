"""The books of one answer: what took how long, what was told, and whether to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from nvila_ros.errors import NoFramesError, NvilaError, QueryError
from nvila_ros.generation.pieces import TextStream
from nvila_ros.types import (
    Answer,
    Counts,
    FinishReason,
    FrameRef,
    OnAnswer,
    OnPiece,
    Piece,
    Query,
    ShouldStop,
    Timings,
)

STOPPED = {
    FinishReason.CANCELED: "canceled before the answer's end",
    FinishReason.DEADLINE: "deadline_s passed before the answer's end",
}
"""What is told of an answer that was stopped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A query to be answered, and where its pieces and its one answer go.

    Attributes:
        on_answer: takes the answer as soon as it is there, once.
        on_piece: takes each piece of text as it comes; the last one is final.
        should_stop: asked before each step and token; the reason to end with, or None to go on.
    """

    query: Query
    on_answer: OnAnswer
    on_piece: OnPiece | None = None
    should_stop: ShouldStop | None = None


@dataclass(frozen=True, slots=True)
class Author:
    """Who answers: name of the checkpoint, runtime, numeric format of the weights."""

    model: str
    backend: str
    precision: str


class StopWork(Exception):  # noqa: N818 - not an error: it unwinds work that nobody waits for any more
    """Every query that the work was for has ended."""


@dataclass(slots=True)
class _Told:
    """What was told of an answer so far."""

    text: str = ""
    num_pieces: int = 0
    seconds: dict[str, float] = field(default_factory=dict)


class Ledger:
    """Kept while one query is answered, closed into its `Answer`.

    Attributes:
        counts: updated by whoever knows.
        frames: what the answer is about, in capture order.
        choices: what was scored, if anything.
        probabilities: of the choices.
        stream: turns the answer's tokens into text, once decoding began.
        answer: what became of it, once it has ended.
    """

    def __init__(self, ask: Ask, author: Author, now_ns: Callable[[], int], frames: tuple[FrameRef, ...]) -> None:
        self.query = ask.query
        self.counts = Counts()
        self.frames = frames
        self.choices: tuple[str, ...] = ()
        self.probabilities: tuple[float, ...] = ()
        self.stream: TextStream | None = None
        self.answer: Answer | None = None
        self._ask, self._author, self._now_ns = ask, author, now_ns
        self._last_ns = now_ns()
        self._stage = "vision_s"  # the `Timings` field of what is going on
        self._accepted_ns = self.query.accepted_ns or self._last_ns
        self._told = _Told(seconds={"queue_s": (self._last_ns - self._accepted_ns) / 1e9})

    def check(self) -> None:
        """Ask whether to go on, and end the answer if not."""
        reason = self._ask.should_stop() if self._ask.should_stop else None
        if reason is not None:
            self.end(reason, STOPPED[reason])

    def enter(self, stage: str) -> None:
        """Book the time up to here under the stage that ends, and what comes, even the answer's end, under this one."""
        self.mark(self._stage)
        self._stage = stage

    def mark(self, name: str) -> None:
        """Book the time since the last mark under the name of a `Timings` field."""
        now = self._now_ns()
        self._told.seconds[name] = self._told.seconds.get(name, 0.0) + (now - self._last_ns) / 1e9
        self._last_ns = now

    def count(self, **counts: int) -> None:
        """Book numbers under the names of `Counts` fields."""
        self.counts = replace(self.counts, **counts)

    def count_token(self) -> None:
        """Book one token of the answer."""
        self.count(num_answer_tokens=self.counts.num_answer_tokens + 1)
        self._book_first()

    def tell(self, text: str, *, is_final: bool = False) -> None:
        """Give out a piece of text; an empty one is told only if it is the last."""
        if text:
            self._book_first()
        self._told.text += text
        if self._ask.on_piece and (text or is_final):
            newest = self.frames[-1] if self.frames else None
            index, self._told.num_pieces = self._told.num_pieces, self._told.num_pieces + 1
            query_id = self.query.query_id
            self._ask.on_piece(Piece(query_id=query_id, index=index, text=text, is_final=is_final, newest=newest))

    def end(self, reason: FinishReason, error: str = "") -> None:
        """Tell what the stream held back, end the stage that is going on and give out the answer."""
        assert self.answer is None, "an answer ends once"
        self.tell(self.stream.flush() if self.stream else "", is_final=True)
        self.mark(self._stage)
        seconds = self._told.seconds | {"total_s": (self._last_ns - self._accepted_ns) / 1e9}
        self.answer = Answer(
            query=self.query,
            finish_reason=reason,
            error=error,
            text=self._told.text,
            frames=self.frames,
            choices=self.choices,
            probabilities=self.probabilities,
            timings=Timings(**seconds),
            counts=self.counts,
            model=self._author.model,
            backend=self._author.backend,
            precision=self._author.precision,
        )
        self._ask.on_answer(self.answer)

    def _book_first(self) -> None:
        if "ttft_s" not in self._told.seconds:
            self._told.seconds["ttft_s"] = (self._now_ns() - self._accepted_ns) / 1e9


class Ledgers:
    """The books of all queries that are worked on together; those that have ended are left out."""

    def __init__(self, ledgers: Iterable[Ledger]) -> None:
        self._all = tuple(ledgers)

    @property
    def open(self) -> Sequence[Ledger]:
        """The books whose answers have not ended."""
        return [ledger for ledger in self._all if ledger.answer is None]

    def check(self) -> None:
        """Ask for each whether to go on.

        Raises:
            StopWork: for none of them.
        """
        for ledger in self.open:
            ledger.check()
        if not self.open:
            raise StopWork

    def mark(self, name: str) -> None:
        """Book the time since the last mark in all."""
        for ledger in self.open:
            ledger.mark(name)

    def enter(self, stage: str) -> None:
        """Let all begin a stage."""
        for ledger in self.open:
            ledger.enter(stage)

    def fail(self, failure: Exception) -> None:
        """End all, since what they share failed."""
        for ledger in self.open:
            ledger.end(*verdict(failure))


def verdict(failure: Exception) -> tuple[FinishReason, str]:
    """Return how an answer ends whose work failed, and what is told of it."""
    if not isinstance(failure, NvilaError):  # the model's runtime may raise anything
        return FinishReason.FAILED, f"{type(failure).__name__}: {failure}"
    by_kind = {NoFramesError: FinishReason.NO_FRAMES, QueryError: FinishReason.INVALID}
    return by_kind.get(type(failure), FinishReason.FAILED), str(failure)
