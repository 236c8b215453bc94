"""The books of one answer: what took how long, what was told, and whether to go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from nvila_ros.generation.pieces import TextStream
from nvila_ros.types import Answer, Counts, FinishReason, Frame, FrameRef, OnPiece, Piece, Query, ShouldStop, Timings


class StopAnswer(Exception):  # noqa: N818 - not an error: it unwinds a run that was told to stop
    """Carries the reason to end with."""

    def __init__(self, reason: FinishReason) -> None:
        self.reason = reason


class Ledger:
    """Kept while one query is answered, closed into its `Answer`.

    Attributes:
        counts: updated by whoever knows.
        probabilities: of the query's choices, where it has any.
        stream: turns the answer's tokens into text, once decoding began.
    """

    def __init__(
        self,
        query: Query,
        now_ns: Callable[[], int],
        frames: Sequence[Frame],
        on_piece: OnPiece | None,
        should_stop: ShouldStop | None,
    ) -> None:
        self.query = query
        self.counts = Counts()
        self.probabilities: tuple[float, ...] = ()
        self.stream: TextStream | None = None
        self._now_ns, self._on_piece, self._should_stop = now_ns, on_piece, should_stop
        self._frames = tuple(FrameRef(stamp_ns=f.stamp_ns, camera=f.camera, frame_id=f.frame_id) for f in frames)
        self._last_ns = now_ns()
        self._accepted_ns = query.accepted_ns or self._last_ns
        self._seconds = {"queue_s": (self._last_ns - self._accepted_ns) / 1e9}
        self._text = ""
        self._num_pieces = 0

    def check(self) -> None:
        """Ask whether to go on.

        Raises:
            StopAnswer: with the reason not to.
        """
        reason = self._should_stop() if self._should_stop else None
        if reason is not None:
            raise StopAnswer(reason)

    def steps(self, array: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the rows of an array one by one, each with its leading dimension, asking before each."""
        for i in range(len(array)):
            self.check()
            yield array[i : i + 1]

    def mark(self, name: str) -> None:
        """Book the time since the last mark under the name of a `Timings` field."""
        now = self._now_ns()
        self._seconds[name] = (now - self._last_ns) / 1e9
        self._last_ns = now

    def count_token(self) -> None:
        """Book one token of the answer."""
        self.counts = replace(self.counts, num_answer_tokens=self.counts.num_answer_tokens + 1)
        self._book_first()

    def tell(self, text: str, *, is_final: bool = False) -> None:
        """Give out a piece of text; an empty one is told only if it is the last."""
        if text:
            self._book_first()
        self._text += text
        if self._on_piece and (text or is_final):
            newest = self._frames[-1] if self._frames else None
            index, self._num_pieces = self._num_pieces, self._num_pieces + 1
            self._on_piece(
                Piece(query_id=self.query.query_id, index=index, text=text, is_final=is_final, newest=newest)
            )

    def close(self, reason: FinishReason) -> Answer:
        """Tell what the stream held back, end the decode time and return the answer."""
        self.tell(self.stream.flush() if self.stream else "", is_final=True)
        self.mark("decode_s")
        self._seconds["total_s"] = (self._last_ns - self._accepted_ns) / 1e9
        return Answer(
            query=self.query,
            finish_reason=reason,
            text=self._text,
            frames=self._frames,
            probabilities=self.probabilities,
            timings=Timings(**self._seconds),
            counts=self.counts,
        )

    def _book_first(self) -> None:
        if "ttft_s" not in self._seconds:
            self._seconds["ttft_s"] = (self._now_ns() - self._accepted_ns) / 1e9
