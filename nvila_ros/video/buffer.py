"""The frames of the last seconds, by capture stamp, within a bound of bytes.

In: frames of named cameras, nearly in order. Out: the frames of a window of time. One lock, held for microseconds: the
callbacks that push and the worker that looks never wait for each other's work. Every frame that leaves is counted with
the reason, so that "why was that not seen" has an answer. A camera whose stamps jump back (a bag that starts again, a
simulator that was reset) starts anew: frames of two pasts must not meet in one clip.
"""

from __future__ import annotations

import enum
import threading
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

NS_PER_S = 1_000_000_000
MAX_DISORDER_NS = NS_PER_S
"""How far a stamp may lie before the newest and still be a frame that came late: transports reorder by less."""


class Stamped(Protocol):
    """What the buffer needs to know of a frame; `stamp_ns` is its capture, `num_bytes` what keeping it costs."""

    @property
    def stamp_ns(self) -> int: ...  # noqa: D102

    @property
    def camera(self) -> str: ...  # noqa: D102

    @property
    def num_bytes(self) -> int: ...  # noqa: D102


F = TypeVar("F", bound=Stamped)
_STAMP = attrgetter("stamp_ns")


class DropReason(str, enum.Enum):
    """Why a frame left the buffer, or never entered it."""

    AGED = "aged"  # older than the horizon
    BYTES = "bytes"  # made room for newer ones
    TOO_LARGE = "too_large"  # alone above the bound of bytes
    REPEATED = "repeated"  # another frame of that camera came with the same stamp
    TIME_JUMP = "time_jump"  # stamps or the clock went back


@dataclass(frozen=True, slots=True)
class BufferState:
    """What the buffer holds and has dropped."""

    num_frames: int
    num_bytes: int
    num_dropped: Mapping[str, int]
    oldest_ns: int | None
    newest_ns: int | None


class FrameBuffer(Generic[F]):
    """A ring of frames per camera; safe to use from several threads.

    Args:
        horizon_s: frames older than this, counted from the newest frame of their camera, are dropped.
        max_bytes: bound over all cameras; the oldest frame of all goes first.
    """

    def __init__(self, horizon_s: float, max_bytes: int) -> None:
        self._horizon_ns = round(horizon_s * NS_PER_S)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._frames: dict[str, list[F]] = {}  # ascending, distinct stamps
        self._num_bytes = 0
        self._num_dropped = Counter({reason.value: 0 for reason in DropReason})

    def push(self, frame: F) -> int:
        """Take a frame in, in order of its stamp.

        Returns:
            how far the stamp went back, in ns, where this made the camera's older frames void; 0 as a rule.
        """
        with self._lock:
            if frame.num_bytes > self._max_bytes:
                self._num_dropped[DropReason.TOO_LARGE.value] += 1
                return 0
            frames = self._frames.setdefault(frame.camera, [])
            jump_ns = frames[-1].stamp_ns - frame.stamp_ns if frames else 0
            if jump_ns > MAX_DISORDER_NS:
                self._drop(frames, len(frames), DropReason.TIME_JUMP)
            self._insert(frames, frame)
            self._trim(frames)
            return jump_ns if jump_ns > MAX_DISORDER_NS else 0

    def window(self, cameras: Sequence[str], start_ns: int, end_ns: int) -> list[list[F]]:
        """Return the frames captured in `[start_ns, end_ns]`, one ascending list per camera asked for."""
        with self._lock:
            held = [self._frames.get(camera, []) for camera in cameras]
            return [
                frames[bisect_left(frames, start_ns, key=_STAMP) : bisect_right(frames, end_ns, key=_STAMP)]
                for frames in held
            ]

    def newest_ns(self, cameras: Sequence[str]) -> int | None:
        """Return the stamp of the newest frame of these cameras, or None where they have none."""
        with self._lock:
            return max((self._frames[c][-1].stamp_ns for c in cameras if self._frames.get(c)), default=None)

    def clear(self) -> int:
        """Drop every frame, since the clock went back; returns how many there were."""
        with self._lock:
            num_frames = sum(map(len, self._frames.values()))
            for frames in self._frames.values():
                self._drop(frames, len(frames), DropReason.TIME_JUMP)
            return num_frames

    def state(self, cameras: Sequence[str] | None = None) -> BufferState:
        """Return counts and span; frames and span of these cameras only, where some are named."""
        with self._lock:
            names = self._frames if cameras is None else cameras
            held = [self._frames[name] for name in names if self._frames.get(name)]
            return BufferState(
                num_frames=sum(map(len, held)),
                num_bytes=self._num_bytes,
                num_dropped=dict(self._num_dropped),
                oldest_ns=min((frames[0].stamp_ns for frames in held), default=None),
                newest_ns=max((frames[-1].stamp_ns for frames in held), default=None),
            )

    def _insert(self, frames: list[F], frame: F) -> None:
        at = bisect_left(frames, frame.stamp_ns, key=_STAMP)
        if at < len(frames) and frames[at].stamp_ns == frame.stamp_ns:
            self._num_bytes -= frames.pop(at).num_bytes
            self._num_dropped[DropReason.REPEATED.value] += 1
        frames.insert(at, frame)
        self._num_bytes += frame.num_bytes

    def _trim(self, frames: list[F]) -> None:
        horizon_ns = frames[-1].stamp_ns - self._horizon_ns
        self._drop(frames, bisect_left(frames, horizon_ns, key=_STAMP), DropReason.AGED)
        while self._num_bytes > self._max_bytes:
            oldest = min((held for held in self._frames.values() if held), key=lambda held: held[0].stamp_ns)
            self._drop(oldest, 1, DropReason.BYTES)

    def _drop(self, frames: list[F], count: int, reason: DropReason) -> None:
        self._num_bytes -= sum(frame.num_bytes for frame in frames[:count])
        self._num_dropped[reason.value] += count
        del frames[:count]
