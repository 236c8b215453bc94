"""The one thread that owns the model: it takes a query, looks at the frames it asks about, and answers.

In: tickets from the scheduler, frames from the buffer. Out: one answer per ticket, through the scheduler. Frames are
chosen when the query's turn comes and not when it was asked, so that the answer is about what the camera sees then.
Only the chosen frames are converted to RGB.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from nvila_ros.errors import NoFramesError, NvilaError, QueryError
from nvila_ros.scheduler import NS_PER_S, Scheduler, Ticket, unanswered
from nvila_ros.types import Answer, FinishReason, Frame, OnPiece, Query, RawFrame, ShouldStop
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.sampling import sample_indices, split_frames

LOG = logging.getLogger(__name__)


class Answerer(Protocol):
    """What the worker needs of the model; `pipeline.Perceiver` is the one there is."""

    def answer(
        self,
        query: Query,
        frames: Sequence[Frame],
        *,
        on_piece: OnPiece | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Answer:
        """Answer one query about frames in capture order."""


class Worker:
    """Works the scheduler's queries off, one at a time, on a thread of its own.

    Args:
        model: used on the worker's thread only.
        scheduler: closing it ends the thread.
        buffer: where the frames are.
        decode: converts a frame that was chosen; raises FrameError.
        now_ns: the steady clock.
    """

    def __init__(
        self,
        model: Answerer,
        scheduler: Scheduler,
        buffer: FrameBuffer[RawFrame],
        decode: Callable[[RawFrame], Frame],
        *,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._model = model
        self._scheduler = scheduler
        self._buffer = buffer
        self._decode = decode
        self._now_ns = now_ns
        self._thread = threading.Thread(target=self._run, name="nvila_worker")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the thread to end after the scheduler was closed; returns whether it did."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while self._scheduler.wait():
            ticket = self._scheduler.pop(self._now_ns())
            if ticket is not None:
                self._scheduler.finish(self._settle(ticket))

    def _settle(self, ticket: Ticket) -> Answer:
        query = ticket.query
        try:
            return self._answer(ticket)
        except NoFramesError as error:
            return unanswered(query, FinishReason.NO_FRAMES, str(error), self._now_ns())
        except QueryError as error:
            return unanswered(query, FinishReason.INVALID, str(error), self._now_ns())
        except NvilaError as error:
            LOG.error("query_id=%s failed: %s", query.query_id, error)
            return unanswered(query, FinishReason.FAILED, str(error), self._now_ns())
        except Exception as error:  # the model's runtime may raise anything, and the next query must still be answered
            LOG.exception("query_id=%s failed", query.query_id)
            return unanswered(query, FinishReason.FAILED, f"{type(error).__name__}: {error}", self._now_ns())

    def _answer(self, ticket: Ticket) -> Answer:
        query = ticket.query
        start_ns = self._now_ns()
        frames = [self._decode(raw) for raw in select_frames(self._buffer, query)]
        decoded_s = (self._now_ns() - start_ns) / NS_PER_S
        answer = self._model.answer(
            query,
            frames,
            on_piece=ticket.on_piece,
            should_stop=lambda: self._scheduler.should_stop(self._now_ns()),
        )
        # The model took the query for waiting until its frames were there.
        times = answer.timings
        times = replace(times, queue_s=times.queue_s - decoded_s, preprocess_s=times.preprocess_s + decoded_s)
        return replace(answer, timings=times)


def select_frames(buffer: FrameBuffer[RawFrame], query: Query) -> list[RawFrame]:
    """Choose the frames that a query is about.

    Each camera asked for gets its share of `query.num_frames` (see `split_frames`), spread evenly over its part of
    the window (see `sample_indices`).

    Args:
        buffer: what is kept.
        query: with its cameras named.

    Returns:
        at least one frame, in capture order.

    Raises:
        NoFramesError: no frame in the window; window and content of the buffer are named.
    """
    newest_ns = buffer.newest_ns(query.cameras)
    if newest_ns is None:
        raise NoFramesError(f"no frame of {', '.join(query.cameras)} is in the buffer; is the camera publishing?")
    start_ns, end_ns = _interval(query, newest_ns)
    held = buffer.window(query.cameras, start_ns, end_ns)
    chosen: list[RawFrame] = []
    for frames, share in zip(held, split_frames(query.num_frames, list(map(len, held))), strict=True):
        if share:
            chosen += [frames[i] for i in sample_indices([frame.stamp_ns for frame in frames], share)]
    if not chosen:
        raise NoFramesError(_describe_miss(buffer, query, start_ns, end_ns))
    return sorted(chosen, key=lambda frame: frame.stamp_ns)


def _interval(query: Query, newest_ns: int) -> tuple[int, int]:
    if query.start_ns is not None and query.end_ns is not None:
        return query.start_ns, query.end_ns
    return newest_ns - round(query.window_s * NS_PER_S), newest_ns


def _describe_miss(buffer: FrameBuffer[RawFrame], query: Query, start_ns: int, end_ns: int) -> str:
    asked = f"no frame of {', '.join(query.cameras)} in [{start_ns / NS_PER_S:.3f}, {end_ns / NS_PER_S:.3f}] s"
    state = buffer.state(query.cameras)
    if state.oldest_ns is None or state.newest_ns is None:
        return f"{asked}; the buffer holds none now"
    span = f"{state.oldest_ns / NS_PER_S:.3f} to {state.newest_ns / NS_PER_S:.3f} s"
    return f"{asked}; the buffer holds {state.num_frames} from {span}"
