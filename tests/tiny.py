"""Small strict stand-ins for the model and the clock: they fail on use that the real ones do not allow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from nvila_ros.errors import NumericsError, QueryError
from nvila_ros.request import ModelInfo, Request, StopWork
from nvila_ros.types import FinishReason, FrameRef, Query, RawFrame, RawImage
from nvila_ros.video.deferred import DeferredFrame

CRASH = "crash"
UNLIKE = "what is unlike its world"
"""Asked about that, the fake model remarks it from then on."""
DEADLY = "deadly"
NO_NUMBER = "no number"
KNOWN = "known"
TOO_LONG = "too long"


class FakeClock:
    """A steady clock that moves only when told to."""

    def __init__(self, now_ns: int = 1_000_000_000) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, seconds: float) -> None:
        assert seconds >= 0, "a steady clock does not go back"
        self.now_ns += round(seconds * 1e9)


class FakeModel:
    """Says the words of the question, one token each, up to `max_tokens`; with choices, says the first.

    Strict: one thread only, frames in capture order, RGB bytes, and one clip at a time.

    Args:
        token_s: how long a token takes.
        now_ns: the steady clock.
    """

    def __init__(self, token_s: float = 0.0, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.info = ModelInfo("fake", "numpy", "none")
        self.num_warm_ups = 0
        self.prefetched: list[int] = []
        self.is_slow_ahead = False
        self.remarked = ""
        self.frames_per_group = 1
        self._token_s, self._now_ns = token_s, now_ns
        self._thread: threading.Thread | None = None
        self._is_busy = threading.Lock()

    def warm_up(self) -> None:
        self.num_warm_ups += 1

    def answer_all(self, requests: Sequence[Request], frames: Sequence[DeferredFrame]) -> None:
        self._check(frames)
        assert self._is_busy.acquire(blocking=False), "one call at a time"
        assert len({request.query.clip for request in requests}) == 1, "queries answered together are about one clip"
        try:
            for request in requests:
                self._answer(request, frames)
        finally:
            self._is_busy.release()

    def has_conversation(self, query: Query) -> bool:
        return query.is_follow_up and query.conversation == KNOWN

    def prefetch(self, frame: DeferredFrame, *, is_alone: bool, should_stop: Callable[[], bool]) -> None:
        self._check([frame])
        self.prefetched.append(frame.stamp_ns)
        while self.is_slow_ahead and not should_stop():
            time.sleep(0.001)
        if self.is_slow_ahead:
            raise StopWork

    def counters(self) -> dict[str, int]:
        return {"frames_encoded": len(self.prefetched)}

    def remark(self) -> str:
        return self.remarked

    def words(self, query: Query, frames: Sequence[DeferredFrame]) -> list[str]:
        """Return the answer, word by word."""
        return list(query.choices[:1]) or query.question.split(" ")

    def _check(self, frames: Sequence[DeferredFrame]) -> None:
        self._thread = self._thread or threading.current_thread()
        assert self._thread is threading.current_thread(), "one thread owns the model"
        stamps = [frame.stamp_ns for frame in frames]
        assert stamps == sorted(stamps), "frames must be in capture order"
        for frame in frames:
            assert frame.image.dtype == np.uint8, "frames must be bytes"
            assert frame.image.ndim == 3, "frames must be (H, W, 3)"
            assert frame.image.shape[2] == 3, "frames must be RGB"

    def _answer(self, request: Request, frames: Sequence[DeferredFrame]) -> None:
        query = request.query
        if query.question == DEADLY:
            raise SystemExit("the worker dies")
        if query.question == CRASH:
            raise ZeroDivisionError("the runtime broke")
        if query.question == NO_NUMBER:
            raise NumericsError("1 logit is NaN")
        if query.question == TOO_LONG:
            raise QueryError("prompt and answer must fit 8 positions, got 9")
        if query.question == UNLIKE:
            self.remarked = UNLIKE
        request.begin(self.info, _refs(frames), self._now_ns)
        request.choices = query.choices
        request.probabilities = tuple(float(i == 0) for i in range(len(query.choices)))
        for index, word in enumerate(self.words(query, frames)):
            request.check()
            if request.answer is not None:
                return
            if index == query.max_tokens:
                request.end(FinishReason.LENGTH)
                return
            time.sleep(self._token_s)
            request.count_token()
            request.emit(word if index == 0 else " " + word)
        request.end(FinishReason.STOP)


def load_fake(
    model: str, *, backend: str, threads: int, overrides: object, limits: object, precision: str = ""
) -> FakeModel:
    """Stand in for `load_model`; the token time comes with the model's name, e.g. `fake:0.01`."""
    return FakeModel(token_s=float(model.partition(":")[2] or 0))


def _refs(frames: Sequence[DeferredFrame]) -> tuple[FrameRef, ...]:
    return tuple(FrameRef(stamp_ns=f.stamp_ns, camera=f.camera, frame_id=f.frame_id) for f in frames)


def raw_image(width: int = 4, height: int = 2, encoding: str = "rgb8", value: int = 0) -> RawImage:
    """Return an image of one byte value without padding, of an encoding of three bytes a pixel."""
    data = np.full(width * height * 3, value, np.uint8)
    return RawImage(data=data, encoding=encoding, width=width, height=height, step=width * 3)


def raw_frame(stamp_s: float, camera: str = "camera", width: int = 4) -> RawFrame:
    """Return a frame captured at a time."""
    return RawFrame(image=raw_image(width), stamp_ns=round(stamp_s * 1e9), camera=camera)
