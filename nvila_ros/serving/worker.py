"""The one thread that owns the model: it takes requests, selects the frames they ask about, and answers.

In: requests from the scheduler, frames from the buffer. Out: one answer per request, through the scheduler. Frames are
selected when a request's turn comes and not when it was asked, so that the answer is about what the camera sees then.
Only frames that the model has not encoded yet are converted to RGB. While nothing is asked, the newest frames may be
encoded ahead of a question.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from nvila_ros.errors import BackendError, FrameError, NumericsError, NvilaError
from nvila_ros.request import Request, StopWork, finish_reason_for
from nvila_ros.serving.request_images import check_whole, decode_images
from nvila_ros.serving.scheduler import Scheduler
from nvila_ros.serving.throttle import Throttle
from nvila_ros.types import NS_PER_S, FinishReason, Frame, Query, RawFrame
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.deferred import DeferredFrame, select_whole
from nvila_ros.video.selection import Freshness

LOG = logging.getLogger(__name__)
WARN_EVERY_S = 5.0


class WorkerModel(Protocol):
    """What the worker needs of a model: `pipeline.VisionLanguageModel`, or `remote.model.RemoteModel`."""

    @property
    def frames_per_group(self) -> int:
        """Frames of a clip that are averaged together, 1 for none."""
        ...

    def answer_all(self, requests: Sequence[Request], frames: Sequence[DeferredFrame]) -> None:
        """Answer requests about the same frames in capture order, each once."""

    def has_conversation(self, query: Query) -> bool:
        """Whether a query continues a conversation about the frames that it has."""

    def prefetch(self, frame: DeferredFrame, *, is_alone: bool, should_stop: Callable[[], bool]) -> None:
        """Encode a frame before a question about it comes; raises `StopWork` where it should stop."""

    def counters(self) -> dict[str, int]:
        """Return how much work was done and spared; from any thread."""
        ...

    def remark(self) -> str:
        """Return what people should know of the answers so far, or an empty text; from any thread."""
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
    """Answers the scheduler's requests on a thread of its own.

    Args:
        model: used on the worker's thread only.
        scheduler: closing it ends the thread.
        buffer: where the frames are.
        decode: converts a frame that is to be encoded; raises FrameError.
        ahead: returns what to encode while nothing is asked; called each time.
        fresh: returns what a camera's newest frame must be, see `select_frames`; called each time.
        now_ns: the steady clock.

    Attributes:
        numerics_fault: why the model's last result was no number; empty again once it has answered.
    """

    def __init__(
        self,
        model: WorkerModel,
        scheduler: Scheduler,
        buffer: FrameBuffer[RawFrame],
        decode: Callable[[RawFrame], Frame],
        *,
        ahead: Callable[[], LookAhead] = LookAhead,
        fresh: Callable[[], Freshness | None] = lambda: None,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.numerics_fault = ""
        self._model: WorkerModel | None = model
        self._scheduler = scheduler
        self._buffer = buffer
        self._decode = decode
        self._ahead = ahead
        self._fresh = fresh
        self._ahead_ns = 0  # when frames are encoded ahead next
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

    def use(self, model: WorkerModel | None) -> None:
        """Take another model, or none, from the next request on; the old one is released."""
        self._model = model

    def counters(self) -> dict[str, int]:
        """Return the model's counters; from any thread."""
        model = self._model
        return model.counters() if model is not None else {}

    def remark(self) -> str:
        """Return the model's remark; from any thread."""
        model = self._model
        return model.remark() if model is not None else ""

    def _run(self) -> None:
        error = "the worker thread ended"
        try:
            self._serve()
        except BaseException as failure:  # whatever it is, nobody may wait for this thread any more
            LOG.exception("the worker thread has died")
            error = f"the worker thread has died ({type(failure).__name__}: {failure}), and the node ends"
        finally:
            self._scheduler.abort(self._now_ns(), error)

    def _serve(self) -> None:
        while self._scheduler.wait(self._idle_s()):
            requests = self._scheduler.pop(self._now_ns())
            if requests:
                self._work(requests)
            elif (ahead := self._ahead()).rate_hz and self._now_ns() >= self._ahead_ns:
                self._encode_ahead(ahead)

    def _idle_s(self) -> float | None:
        if not self._ahead().rate_hz:
            return None
        return max(self._ahead_ns - self._now_ns(), 0) / NS_PER_S

    def _work(self, requests: Sequence[Request]) -> None:
        """Answer requests about one clip; whatever goes wrong, each gets its answer."""
        reason, error = FinishReason.FAILED, "the model gave no answer"
        left = list(requests)

        def finish(request: Request) -> None:
            left.remove(request)
            if request.answer is not None and request.answer.finish_reason.is_answered:
                self.numerics_fault = ""
            self._scheduler.finish(request, self._now_ns())

        for request in requests:
            request.should_stop = partial(self._should_stop, request)
            request.on_end = finish
        try:
            self._answer(requests)
        except Exception as failure:  # whatever it is, the next request must still be answered
            reason, error = finish_reason_for(failure)
            self.numerics_fault = error if isinstance(failure, NumericsError) else self.numerics_fault
            if reason is FinishReason.FAILED:
                names = ",".join(request.query.query_id for request in requests)
                LOG.error("query_id=%s failed: %s", names, error, exc_info=not isinstance(failure, NvilaError))
        for request in list(left):
            request.refuse(reason, error, self._now_ns())
            finish(request)

    def _should_stop(self, request: Request) -> FinishReason | None:
        return self._scheduler.should_stop(request, self._now_ns())

    def _answer(self, requests: Sequence[Request]) -> None:
        model, query = self._model, requests[0].query
        if model is None:
            raise BackendError("the model was released; configure and activate the node")
        frames: list[DeferredFrame] = []
        for turn in requests[0].turns:
            check_whole(turn.frames, "an earlier picture")
        if query.images:
            frames = decode_images(query.images, self._decode)
        elif not query.is_blind and not model.has_conversation(query):
            frames = select_whole(
                self._buffer,
                query,
                self._decode,
                fresh=self._fresh(),
                on_damage=self._report_damage,
                frames_per_group=model.frames_per_group,
            )
        model.answer_all(requests, frames)

    def _report_damage(self, frame: RawFrame, error: FrameError) -> None:
        if self._warnings.is_due((frame.camera, "damaged"), self._now_ns()):
            LOG.warning("camera=%s stamp_ns=%d a damaged frame was dropped: %s", frame.camera, frame.stamp_ns, error)

    def _encode_ahead(self, ahead: LookAhead) -> None:
        """Encode the newest frame of each camera, until somebody asks."""
        self._ahead_ns = self._now_ns() + round(NS_PER_S / ahead.rate_hz)
        model = self._model
        if model is None:
            return
        for camera in ahead.cameras:
            newest_ns = self._buffer.newest_ns([camera])
            if newest_ns is None or self._scheduler.has_other_work():
                continue
            try:
                for raw in self._buffer.window([camera], newest_ns, newest_ns)[0]:
                    frame = DeferredFrame(raw, self._decode)
                    if damage := frame.damage():
                        self._buffer.discard(raw)
                        self._report_damage(raw, damage)
                        continue
                    model.prefetch(frame, is_alone=ahead.is_alone, should_stop=self._scheduler.has_other_work)
            except StopWork:
                return
            except Exception as failure:  # nobody asked: a question about this frame will report it
                if self._warnings.is_due((camera, type(failure)), self._now_ns()):
                    LOG.warning("camera=%s cannot be encoded ahead: %s", camera, failure)
