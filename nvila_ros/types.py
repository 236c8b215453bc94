"""The nouns of the flow: frames go in, answers come out, and both are true in time.

Everything here is a frozen value without behaviour beyond small derived facts; no ROS, no torch. Stamps are capture
times in integer nanoseconds of the ROS clock; durations are seconds of the steady clock.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NS_PER_S = 1_000_000_000


@dataclass(slots=True)
class FrameMemo:
    """What was computed of a frame when it was first asked for; two threads that ask at once compute the same."""

    digest: bytes | None = None
    thumbnail: np.ndarray | None = None
    is_whole: bool = False  # it was decoded, and is not damaged


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One image and when it was captured.

    Attributes:
        image: (H, W, 3) uint8 RGB; never written to.
        stamp_ns: capture time.
        camera: the name by which queries address the camera.
        frame_id: the tf frame of the camera, copied into the answer's header.
    """

    image: np.ndarray
    stamp_ns: int
    camera: str = "camera"
    frame_id: str = ""
    memo: FrameMemo = field(default_factory=FrameMemo, init=False, repr=False, compare=False)

    @property
    def digest(self) -> bytes:
        """16 bytes that identify the pixels alone; computed from all of them when first read."""
        if self.memo.digest is None:
            self.memo.digest = _digest(self.image, self.image.shape)
        return self.memo.digest

    @property
    def raw(self) -> RawFrame:
        """The frame as a camera would have sent it."""
        height, width = self.image.shape[:2]
        data = np.ascontiguousarray(self.image).reshape(-1)
        image = RawImage(data=data, encoding="rgb8", width=width, height=height, step=3 * width)
        return RawFrame(image=image, stamp_ns=self.stamp_ns, camera=self.camera, frame_id=self.frame_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawImage:
    """The pixels of one image as a camera sent them, in the terms of sensor_msgs/Image.

    Attributes:
        data: (num_bytes,) uint8; never written to.
        encoding: name of the pixel layout, e.g. `rgb8`.
        width: px.
        height: px.
        step: bytes from one row to the next.
        is_bigendian: byte order of encodings with more than one byte per channel.
        window: which values of `mono16` are shown, see `video.windowing`.
    """

    data: np.ndarray
    encoding: str
    width: int
    height: int
    step: int
    is_bigendian: bool = False
    window: str = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """One image as a compressed file, in the terms of sensor_msgs/CompressedImage.

    Attributes:
        data: (num_bytes,) uint8, a whole JPEG or PNG file; never written to.
        format: what the sender says of it, e.g. `jpeg` or `rgb8; jpeg compressed bgr8`.
        width: px, as the file's header says; 0 where it was not read yet.
        height: px, likewise.
        window: which values of a picture of more than eight bits are shown, see `video.windowing`.
    """

    data: np.ndarray
    format: str
    width: int
    height: int
    window: str = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFrame:
    """A frame that is not converted yet: most frames of a stream are never used. Fields as in `Frame`."""

    image: RawImage | EncodedImage
    stamp_ns: int
    camera: str = "camera"
    frame_id: str = ""
    memo: FrameMemo = field(default_factory=FrameMemo, init=False, repr=False, compare=False)

    @property
    def num_bytes(self) -> int:
        """Bytes that keeping this frame costs."""
        return int(self.image.data.nbytes)

    @property
    def digest(self) -> bytes:
        """16 bytes that stand for the pixels and their layout; the first time reads every byte."""
        if self.memo.digest is None:
            image = self.image
            if isinstance(image, EncodedImage):
                layout: tuple[object, ...] = (image.format,)
            else:
                layout = (image.encoding, image.width, image.height, image.step, image.is_bigendian)
            self.memo.digest = _digest(image.data, layout)
        return self.memo.digest


def _digest(data: np.ndarray, layout: tuple[object, ...]) -> bytes:
    hasher = hashlib.blake2b(repr(layout).encode(), digest_size=16)
    hasher.update(np.ascontiguousarray(data).data)
    return hasher.digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One question about a window of the stream.

    The window is `[start_ns, end_ns]` where both are given; else from `ago_start_s` to `ago_end_s` before the newest
    frame where `ago_start_s` is positive; else the `window_s` seconds that end with the newest frame. `accepted_ns` and
    `deadline_ns` are on the steady clock; `deadline_ns` None means no deadline.

    Attributes:
        sampling: which frames of the window are shown, see `video.sampling`.
        answer_type: what may be answered, see `prompt.answer_kinds`; empty is one of `choices`, or text without them.
        minimum: of an integer answer.
        maximum: of an integer answer.
        json_schema: of a JSON answer.
        conversation: id of the conversation that this continues or begins; empty is a question by itself.
        is_follow_up: names no frames of its own, so that a conversation goes on about those it has.
        standing: name of the standing query that asks; empty is a question asked once.
        is_blind: it is about text alone.
        is_unstamped: its images came without stamps, so that those are places in order and no times.
        system: what the model is given before all else; empty is what it was trained with.
        stop: texts that end a free answer where they first occur; they are not part of it.
        top_logprobs: likeliest tokens reported in each place of a decoded answer; 0 the chosen one alone, None nothing.
    """

    query_id: str
    question: str
    num_frames: int = 1
    window_s: float = 0.0
    start_ns: int | None = None
    end_ns: int | None = None
    ago_start_s: float = 0.0
    ago_end_s: float = 0.0
    sampling: str = "uniform"
    cameras: tuple[str, ...] = ()
    images: tuple[RawFrame, ...] = field(default=(), repr=False, compare=False)
    max_tokens: int = 64
    priority: int = 0
    choices: tuple[str, ...] = ()
    answer_type: str = ""
    minimum: int = 0
    maximum: int = 0
    json_schema: str = ""
    conversation: str = ""
    is_follow_up: bool = False
    standing: str = ""
    is_blind: bool = False
    is_unstamped: bool = False
    system: str = ""
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None
    accepted_ns: int = 0
    deadline_ns: int | None = None

    @property
    def clip(self) -> tuple[object, ...]:
        """What decides which frames it is shown; queries that agree in it are about the same clip."""
        window = (self.start_ns, self.end_ns, self.ago_start_s, self.ago_end_s, self.window_s)
        return (self.cameras, self.num_frames, self.sampling, *window)


class FinishReason(enum.IntEnum):
    """Why an answer ended; the values are those of `msg/Answer`."""

    UNKNOWN = 0
    STOP = 1
    LENGTH = 2
    CANCELED = 3
    DEADLINE = 4
    NO_FRAMES = 5
    REJECTED = 6
    INVALID = 7
    FAILED = 8
    REPLACED = 9

    @property
    def is_answered(self) -> bool:
        """Whether the model answered, to its end or to the token limit."""
        return self in (FinishReason.STOP, FinishReason.LENGTH)


class Stage(enum.Enum):
    """A part of the work on a query; its value is the field of `Timings` that its time is added to."""

    QUEUE = "queue_s"
    PREPROCESS = "preprocess_s"
    VISION = "vision_s"
    PREFILL = "prefill_s"
    DECODE = "decode_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time went, seconds of the steady clock; `ttft_s` and `total_s` count from acceptance."""

    queue_s: float = 0.0
    preprocess_s: float = 0.0
    vision_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    ttft_s: float = 0.0
    total_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much went in and out.

    `num_frames_dropped` are sampled frames that the model was not shown, since its video encoder pools whole groups, or
    since they differ too little from one that it was shown; `num_frames_encoded` are those that the vision tower had to
    look at, others were known; `num_reused_tokens` are prompt tokens that a cache spared the prefill.
    """

    num_frames_dropped: int = 0
    num_frames_encoded: int = 0
    num_visual_tokens: int = 0
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    num_answer_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameRef:
    """A frame that an answer is about, without its pixels."""

    stamp_ns: int
    camera: str
    frame_id: str = ""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer, and what else might have stood in its place.

    Attributes:
        token: its bytes; often a part of a character.
        logprob: natural logarithm of its probability, before any constraint.
        top: the likeliest tokens there and theirs, likeliest first.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The outcome of one query: always exactly one, also when the model never ran.

    `frames` are in capture order; `probabilities` are those of `choices`, both empty where nothing was scored. `age_s`
    is the time from the newest capture to the publication by the node, seconds of the ROS clock; 0 outside a node.
    """

    query: Query
    finish_reason: FinishReason
    text: str = ""
    error: str = ""
    frames: tuple[FrameRef, ...] = ()
    choices: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    timings: Timings = field(default_factory=Timings)
    counts: Counts = field(default_factory=Counts)
    model: str = ""
    backend: str = ""
    precision: str = ""
    age_s: float = 0.0

    @property
    def newest(self) -> FrameRef | None:
        """The newest frame that a camera captured, or None where the answer is about none."""
        return self.frames[-1] if self.frames and not self.query.is_unstamped else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A streamed part of an answer's text; the pieces of one answer joined are its text, `logprobs` its tokens."""

    query_id: str
    index: int
    text: str
    is_final: bool
    newest: FrameRef | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Bound:
    """How a config field is described and checked: text, unit and closed range or choices."""

    doc: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    choices: tuple[Any, ...] = ()
    read_only: bool = True


OnPiece = Callable[[Piece], None]
"""Takes each piece of an answer as it comes, on the thread that works."""
OnAnswer = Callable[[Answer], None]
"""Takes the one answer of a query, on the thread that ended it."""
ShouldStop = Callable[[], FinishReason | None]
"""Asked before each step of work: the reason to end with now, or None to go on."""
