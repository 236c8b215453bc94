"""The one thread that owns the model: it takes queries, looks at the frames they ask about, and answers.

In: tickets from the scheduler, frames from the buffer. Out: one answer per ticket, through the scheduler. Frames are
chosen when a query's turn comes and not when it was asked, so that the answer is about what the camera sees then. Only
frames that the model does not know yet are converted to RGB. While nothing is asked, the newest frames may be encoded
ahead, so that a question finds them ready.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nvila_ros.errors import NvilaError
from nvila_ros.request import Ask, StopWork, verdict
from nvila_ros.serving.scheduler import Scheduler, Ticket, unanswered
from nvila_ros.serving.throttle import Throttle
from nvila_ros.types import NS_PER_S, Answer, FinishReason, Frame, Query, RawFrame
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.deferred import DeferredFrame
from nvila_ros.video.selection import select_frames

LOG = logging.getLogger(__name__)
WARN_EVERY_S = 5.0


class Answerer(Protocol):
    """What the worker needs of the model; `pipeline.VisionLanguageModel` is the one there is."""

    def answer_all(self, asks: Sequence[Ask], frames: Sequence[DeferredFrame]) -> None:
        """Answer queries about the same frames in capture order, each once."""

    def knows(self, query: Query) -> bool:
        """Whether a query goes on with a conversation about the frames that it has."""

    def prefetch(self, frame: DeferredFrame, *, is_alone: bool, should_stop: Callable[[], bool]) -> None:
        """Encode a frame before a question about it comes; raises `StopWork` where it should stop."""

    def counters(self) -> dict[str, int]:
        """Return how much work was done and spared; from any thread."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LookAhead:
    """Which frames are encoded before anybody asks.

    Attributes:
        rate_hz: how often; 0 is never.
        cameras: whose newest frames.
        is_alone: as questions about one frame need them, else as those about several do.
    """

    rate_hz: float = 0.0
    cameras: tuple[str, ...] = ()
    is_alone: bool = True


class Worker:
    """Works the scheduler's queries off on a thread of its own.

    Args:
        model: used on the worker's thread only.
        scheduler: closing it ends the thread.
        buffer: where the frames are.
        decode: converts a frame that is looked at; raises FrameError.
        ahead: tells what is done while nothing is asked; asked each time.
        oldest_ns: tells before which capture a camera has stalled, see `select_frames`; asked each time.
        now_ns: the steady clock.
    """

    def __init__(
        self,
        model: Answerer,
        scheduler: Scheduler,
        buffer: FrameBuffer[RawFrame],
        decode: Callable[[RawFrame], Frame],
        *,
        ahead: Callable[[], LookAhead] = LookAhead,
        oldest_ns: Callable[[], int | None] = lambda: None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._model = model
        self._scheduler = scheduler
        self._buffer = buffer
        self._decode = decode
        self._ahead = ahead
        self._oldest_ns = oldest_ns
        self._ahead_ns = 0  # when frames are looked at next
        self._warnings = Throttle(WARN_EVERY_S)
        self._now_ns = now_ns
        self._thread = threading.Thread(target=self._run, name="nvila_worker")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread to end after the scheduler was closed; returns whether it did."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def has_died(self) -> bool:
        """Whether the thread was started and has ended."""
        return self._thread.ident is not None and not self._thread.is_alive()

    def use(self, model: Answerer) -> None:
        """Take another model from the next query on; the old one is let go."""
        self._model = model

    def counters(self) -> dict[str, int]:
        """Return the model's counters; from any thread."""
        return self._model.counters()

    def _run(self) -> None:
        try:
            self._work_on()
        except Exception:
            LOG.exception("the thread that answers has died")
        finally:
            self._scheduler.close(self._now_ns())  # nobody else would answer what waits or comes

    def _work_on(self) -> None:
        while self._scheduler.wait(self._idle_s()):
            tickets = self._scheduler.pop(self._now_ns())
            if tickets:
                self._work(tickets)
            elif (ahead := self._ahead()).rate_hz and self._now_ns() >= self._ahead_ns:
                self._look_ahead(ahead)

    def _idle_s(self) -> float | None:
        if not self._ahead().rate_hz:
            return None
        return max(self._ahead_ns - self._now_ns(), 0) / NS_PER_S

    def _work(self, tickets: Sequence[Ticket]) -> None:
        """Answer queries about one clip; whatever goes wrong, each gets its answer."""
        left = {ticket.query.query_id: ticket.query for ticket in tickets}

        def finish(answer: Answer) -> None:
            del left[answer.query.query_id]
            self._scheduler.finish(answer, self._now_ns())

        reason, error = FinishReason.FAILED, "the model gave no answer"
        try:
            self._answer(tickets, finish)
        except Exception as failure:  # whatever it is, the next query must still be answered
            reason, error = verdict(failure)
            if reason is FinishReason.FAILED:
                names = ",".join(ticket.query.query_id for ticket in tickets)
                LOG.error("query_id=%s failed: %s", names, error, exc_info=not isinstance(failure, NvilaError))
        for query in list(left.values()):
            finish(unanswered(query, reason, error, self._now_ns()))

    def _answer(self, tickets: Sequence[Ticket], finish: Callable[[Answer], None]) -> None:
        model, query = self._model, tickets[0].query
        raw = [] if model.knows(query) else select_frames(self._buffer, query, self._oldest_ns())
        asks = [self._ask(ticket, finish) for ticket in tickets]
        model.answer_all(asks, [DeferredFrame(frame, self._decode) for frame in raw])

    def _ask(self, ticket: Ticket, finish: Callable[[Answer], None]) -> Ask:
        query_id = ticket.query.query_id

        def should_stop() -> FinishReason | None:
            return self._scheduler.should_stop(query_id, self._now_ns())

        return Ask(query=ticket.query, on_answer=finish, on_piece=ticket.on_piece, should_stop=should_stop)

    def _look_ahead(self, ahead: LookAhead) -> None:
        """Encode the newest frame of each camera, until somebody asks."""
        self._ahead_ns = self._now_ns() + round(NS_PER_S / ahead.rate_hz)
        for camera in ahead.cameras:
            newest_ns = self._buffer.newest_ns([camera])
            if newest_ns is None or self._scheduler.has_other_work():
                continue
            try:
                for frame in self._buffer.window([camera], newest_ns, newest_ns)[0]:
                    sight = DeferredFrame(frame, self._decode)
                    self._model.prefetch(sight, is_alone=ahead.is_alone, should_stop=self._scheduler.has_other_work)
            except StopWork:
                return
            except Exception as failure:  # nobody asked: a question about this frame will tell its asker
                if self._warnings.is_due((camera, type(failure)), self._now_ns()):
                    LOG.warning("camera=%s cannot be looked at ahead: %s", camera, failure)
