"""A model for Python programs: load it, ask it about frames, stream its answers; without ROS.

In: frames as `Frame` values or images ``(H, W, 3)`` uint8 RGB. Out: answers, or exceptions that name the rule. All work
of a model is done on one thread of its own, so a program may ask from any of its threads.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nvila_ros.config import NodeConfig
from nvila_ros.errors import FrameError, QueryError
from nvila_ros.models.spec import PUBLISHED, Overrides
from nvila_ros.request import Request
from nvila_ros.runtime.loading import AUTO
from nvila_ros.serving.admission import check_query
from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from nvila_ros.serving.query_fields import AnswerFields, complete_fields, require_answer
from nvila_ros.types import Answer, FinishReason, Frame, OnPiece, Piece, Query, ShouldStop
from nvila_ros.video import media

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from typing_extensions import Unpack

    Frames = Frame | ArrayLike | Sequence[Frame] | Sequence[ArrayLike]


def load(
    model: str = "nvila-tiny",
    *,
    backend: str = AUTO,
    precision: str = AUTO,
    threads: int = 0,
    video_mode: str = PUBLISHED.video_mode,
    max_tiles: int = PUBLISHED.max_tiles,
    change_threshold: float = PUBLISHED.change_threshold,
    key_every: int = PUBLISHED.key_every,
) -> Model:
    """Load a checkpoint or a build.

    Args:
        model: its folder, or the name of an embedded or fetched checkpoint or of a build.
        backend: onnxruntime, cpu, cuda, tensorrt or torch; auto is the one that a build was made for; for a
            checkpoint cuda where torch sees a GPU that holds it, else onnxruntime, or cpu where it is large.
        precision: fp32, w8 or w4, of a checkpoint on the backend cpu, whose linear maps are rounded while they are
            read; auto is w8 there, or w4 where memory is short, and the model's own elsewhere.
        threads: of the runtime; 0 takes every core.
        video_mode: video shows a clip through the checkpoint's video encoder, images each frame by itself.
        max_tiles: most tiles that a single image is cut into; 0 is the checkpoint's own number.
        change_threshold: leave out frames of a clip whose visual tokens all differ by at most this, 1 - cosine, from
            those of the last frame shown; 0 leaves out none.
        key_every: of so many frames in a row the first is shown in any case, at least 1.

    Raises:
        CheckpointError: there is no such model (those that are known are listed), or it is not whole.
        BackendError: the backend is unknown or not installed.
        ConfigError: `change_threshold` or `key_every` is out of its range.
    """
    overrides = Overrides(
        video_mode=video_mode, max_tiles=max_tiles, change_threshold=change_threshold, key_every=key_every
    )
    thread = ThreadPoolExecutor(1, thread_name_prefix="nvila_model")
    try:
        loaded = thread.submit(
            load_model, model, backend=backend, precision=precision, threads=threads, overrides=overrides
        ).result()
    except BaseException:
        thread.shutdown(wait=False)
        raise
    return Model(loaded, thread)


def read_clip(source: str | Path, num_frames: int = 8, start_s: float = 0.0, end_s: float | None = None) -> list[Frame]:
    """Read frames spread evenly over a video file, a folder of images, or one image.

    Args:
        source: path; the images of a folder are frames at 30 Hz, in natural order.
        num_frames: at least 1; where there are fewer, all of them.
        start_s: the earliest time.
        end_s: the latest time; None is the end.

    Raises:
        FrameError: there is nothing that can be read as frames.
        QueryError: a number is out of its range.
        NoFramesError: the interval holds no frame.
    """
    opened = media.open_media(source)
    try:
        return media.read_clip(opened, num_frames, start_s, end_s)
    finally:
        opened.close()


class Model:
    """A loaded model; make one by `load`.

    Attributes:
        name: of the checkpoint.
        backend: the runtime that computes.
        precision: numeric format of the weights.
    """

    def __init__(self, model: VisionLanguageModel, thread: ThreadPoolExecutor) -> None:
        self.name, self.backend, self.precision = model.info.model, model.info.backend, model.info.precision
        self._model, self._thread = model, thread
        self._num_asked = 0

    def __repr__(self) -> str:
        return f"<Model {self.name} {self.backend} {self.precision}>"

    def ask(self, question: str, frames: Frames = (), **fields: Unpack[AnswerFields]) -> Answer:
        """Ask one question about frames and wait for the answer.

        Args:
            question: in plain language.
            frames: what it is about, oldest first: an image (H, W, 3) uint8 RGB, several, or what `read_clip` returns.
                Several are shown as a clip. Without any, the question is about text alone, or about the frames of its
                conversation.
            fields: see `AnswerFields`.

        Raises:
            QueryError: the question breaks a rule, or with the frames is longer than the model takes.
            FrameError: a frame is no such image.
            UnansweredError: the model failed.
        """
        stream = self.stream(question, frames, **fields)  # held until the answer is there; an interrupt lets go of it
        return require_answer(stream.answer.result())

    def ask_all(self, questions: Sequence[str], frames: Frames = (), **fields: Unpack[AnswerFields]) -> list[Answer]:
        """Ask several questions about the same frames at once, and wait for the answers, in the order of the questions.

        The frames are read once and the answers decoded together; each answer is the one that `ask` gives.

        Args:
            questions: in plain language; none continues a conversation.
            frames: as of `ask`.
            fields: of all questions alike.

        Raises:
            NvilaError: as `ask`, for the first question that has no answer.
        """
        shown = _as_frames(frames)
        queries = [self._query(question, shown, fields) for question in questions]
        if any(query.conversation for query in queries):
            raise QueryError("questions of a conversation are asked one by one; use ask, or leave conversation out")
        stop = threading.Event()
        answers = self._thread.submit(self._answer_all, queries, shown, stop)
        try:
            return [require_answer(answer) for answer in answers.result()]
        except BaseException:  # an interrupt too: nobody waits for the rest
            stop.set()
            raise

    def stream(self, question: str, frames: Frames = (), **fields: Unpack[AnswerFields]) -> PieceStream:
        """Ask one question and return the pieces of its answer to iterate over; arguments and errors as of `ask`."""
        shown = _as_frames(frames)
        query = self._query(question, shown, fields)
        return PieceStream(lambda on_piece, stop: self._thread.submit(self._answer, query, shown, on_piece, stop))

    def close(self) -> None:
        """Wait for what is being answered, and refuse further questions."""
        self._thread.shutdown()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def _query(self, question: str, frames: Sequence[Frame], fields: Any) -> Query:
        values = complete_fields(fields, AnswerFields)
        self._num_asked += 1
        query = Query(
            query_id=f"q{self._num_asked:06d}",
            question=question,
            num_frames=max(len(frames), 1),
            is_follow_up=bool(values.get("conversation")) and not frames,
            **values,
        )
        check_query(query, NodeConfig())
        return query

    def _answer_all(self, queries: Sequence[Query], frames: list[Frame], stop: threading.Event) -> list[Answer]:
        answers: dict[str, Answer] = {}

        def take(answer: Answer) -> None:
            answers[answer.query.query_id] = answer

        requests = [Request(query, take, should_stop=_stopper(stop)) for query in queries]
        if requests:
            self._model.answer_all(requests, frames)
        return [answers[query.query_id] for query in queries]

    def _answer(self, query: Query, frames: list[Frame], on_piece: OnPiece, stop: threading.Event) -> Answer:
        return self._model.answer(query, frames, on_piece=on_piece, should_stop=_stopper(stop))


class PieceStream:
    """The pieces of one answer's text, as the model generates them; joined they are the text of `answer`.

    The model works on whether or not pieces are taken; `cancel`, leaving a `with` block, or letting go of the stream
    stops it at its next token.

    Attributes:
        answer: future of the whole answer; of one that was canceled, as far as it came.
    """

    def __init__(self, start: Any) -> None:
        self._stop = threading.Event()
        self._pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        pieces = self._pieces  # not self: a stream that nobody holds is canceled

        def on_piece(piece: Piece) -> None:
            if piece.text:
                pieces.put(piece.text)

        self.answer: Future[Answer] = start(on_piece, self._stop)
        self.answer.add_done_callback(lambda _: pieces.put(None))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self._pieces.get()
        if piece is not None:
            return piece
        self._pieces.put(None)  # for whoever asks once more
        answer = self.answer.result()
        if not self._stop.is_set():
            require_answer(answer)
        raise StopIteration

    def cancel(self) -> None:
        """Stop at the next token; what was said until then is still delivered."""
        self._stop.set()

    def __enter__(self) -> PieceStream:
        return self

    def __exit__(self, *args: object) -> None:
        self.cancel()

    def __del__(self) -> None:
        self._stop.set()


def _stopper(stop: threading.Event) -> ShouldStop:
    return lambda: FinishReason.CANCELED if stop.is_set() else None


def _as_frames(frames: Any) -> list[Frame]:
    """Return frames as values; images get their place as stamp.

    Raises:
        FrameError: one is no image of bytes in RGB, or their stamps are out of order.
    """
    if isinstance(frames, str | Path):
        raise FrameError(f"frames must be images, got the path {str(frames)!r}; read it: read_clip({str(frames)!r})")
    several = [frames] if _is_single(frames) else list(frames)
    found = [frame if isinstance(frame, Frame) else _as_frame(frame, place) for place, frame in enumerate(several)]
    stamps = [frame.stamp_ns for frame in found]
    if stamps != sorted(stamps):
        raise FrameError(f"frames must be in capture order, oldest first, got stamps {stamps} ns")
    return found


def _is_single(frames: Any) -> bool:
    """Whether this is one image; an array or a PIL image has a shape of its own, a list does not."""
    return isinstance(frames, Frame) or (hasattr(frames, "__array_interface__") and np.ndim(frames) != 4)


def _as_frame(image: Any, place: int) -> Frame:
    if isinstance(image, str | Path):
        raise FrameError(f"a frame must be an image, got the path {str(image)!r}; read it: read_clip({str(image)!r})")
    pixels = np.array(image)  # a copy: the caller may write to its own
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise FrameError(
            f"a frame must be an image (H, W, 3) of uint8 in RGB, got {pixels.shape} of {pixels.dtype}; convert it, "
            "for instance by PIL's image.convert('RGB')"
        )
    return Frame(image=pixels, stamp_ns=place)
