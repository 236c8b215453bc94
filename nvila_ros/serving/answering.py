"""What every process that answers has in common: frames, queue, admission, and those who hear of every answer.

The node and `nvila serve` both make one; they differ in where frames and the clock come from. Each endpoint makes its
requests here, so that all are numbered, counted and published alike, whichever way they came.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from nvila_ros.config import NodeConfig
from nvila_ros.request import Request, Turn
from nvila_ros.serving.admission import Admission
from nvila_ros.serving.scheduler import Scheduler
from nvila_ros.serving.worker import LookAhead, Worker
from nvila_ros.types import NS_PER_S, Answer, Frame, FrameRef, OnAnswer, OnPiece, Piece, Query, RawFrame
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.selection import Freshness

CLOCK_TOLERANCE_S = 1.0
"""How far a frame's stamp may lie ahead of our clock; beyond it the clocks disagree, and the age is unknown."""


class Listener(Protocol):
    """Hears of every answer, and of every piece of those that are streamed, on the thread that made it."""

    def on_answer(self, answer: Answer) -> None:
        """Take an answer, before whoever asked gets it."""

    def on_piece(self, piece: Piece) -> None:
        """Take a piece of an answer."""


class Answering:
    """Buffer, scheduler and admission of one process; safe to use from several threads.

    Args:
        config: returns the parameters as they are now.
        refusal: returns why no request is taken now, or an empty text.
        clock_ns: the clock of capture stamps.
        decode: converts a frame to RGB; raises FrameError.

    Attributes:
        buffer: the frames.
        scheduler: the queue.
        admission: the way into it.
        listeners: hear of every answer; appended to before the first is asked.
    """

    def __init__(
        self,
        config: Callable[[], NodeConfig],
        refusal: Callable[[], str],
        clock_ns: Callable[[], int],
        decode: Callable[[RawFrame], Frame],
    ) -> None:
        given = config()
        self.config, self.clock_ns, self.decode = config, clock_ns, decode
        self.buffer: FrameBuffer[RawFrame] = FrameBuffer(
            given.buffer_s, given.buffer_bytes, past_s=given.past_s, past_hz=given.past_hz
        )
        self.scheduler = Scheduler(given.queue_size)
        self.admission = Admission(self.scheduler, config, refusal)
        self.listeners: list[Listener] = []
        self._query_ids = map("q{:06d}".format, itertools.count(1))

    def new_id(self) -> str:
        """Return a query id that was never used."""
        return next(self._query_ids)

    def request(
        self,
        query: Query,
        on_answer: OnAnswer | None = None,
        on_piece: OnPiece | None = None,
        *,
        is_streamed: bool = True,
        turns: Sequence[Turn] = (),
    ) -> Request:
        """Return a request whose answer and pieces the listeners hear of first.

        Args:
            query: what is asked.
            on_answer: of whoever asks.
            on_piece: likewise.
            is_streamed: whether anybody hears of its pieces.
            turns: what was said before, where the request brings it along.
        """

        def emit(answer: Answer) -> None:
            try:
                for listener in self.listeners:
                    listener.on_answer(answer)
            finally:  # whoever asked waits for it
                if on_answer is not None:
                    on_answer(answer)

        def emit_piece(piece: Piece) -> None:
            for listener in self.listeners:
                listener.on_piece(piece)
            if on_piece is not None:
                on_piece(piece)

        return Request(query, emit, emit_piece if is_streamed else None, turns=turns)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests together; some may be answered before this returns."""
        self.admission.admit(requests)

    def make_worker(self, model: Any) -> Worker:
        """Return the worker that answers what is queued, not started yet."""
        return Worker(model, self.scheduler, self.buffer, self.decode, ahead=self._ahead, fresh=self._fresh)

    def age_s(self, newest: FrameRef | None) -> float:
        """Return how old a frame is now, s; negative where the clocks disagree, 0 without one."""
        return (self.clock_ns() - newest.stamp_ns) / NS_PER_S if newest is not None else 0.0

    def expire(self) -> None:
        """Answer those whose deadline passed while they waited; to be called several times a second."""
        self.scheduler.expire(time.monotonic_ns())

    def close(self) -> None:
        """Take nothing more, and answer what waits and runs CANCELED."""
        self.scheduler.close(time.monotonic_ns())

    def _fresh(self) -> Freshness | None:
        """Return when a camera's newest frame must have been captured, or None where any age will do."""
        max_age_s, now_ns = self.config().max_age_s, self.clock_ns()
        if not max_age_s:
            return None
        return Freshness(now_ns - round(max_age_s * NS_PER_S), now_ns + round(CLOCK_TOLERANCE_S * NS_PER_S))

    def _ahead(self) -> LookAhead:
        """Return which frames to encode ahead: those of a question that names none, by the parameters as they are."""
        config = self.config()
        is_alone = config.num_frames_of(config.cameras) == 1
        return LookAhead(rate_hz=config.encode_hz, cameras=config.cameras, is_alone=is_alone)
