"""The frames of the last seconds, by capture stamp, and fewer of a longer past, within a bound of bytes.

In: frames of named cameras, nearly in order. Out: the frames of a window of time. One lock, held for microseconds: the
callbacks that push and the worker that looks never wait for each other's work. Every frame that leaves is counted with
the reason, so that "why was that not seen" has an answer. A camera whose stamps jump back (a bag that starts again, a
simulator that was reset) starts anew: frames of two pasts must not meet in one clip. One frame far behind the others is
no jump but an error, and is dropped; two in a row are one. So do the other cameras whose
frames lie ahead of it, unless they go on: theirs may be the better clock.

A camera's frames are of two ages. Those of the last `horizon_s` are all kept. Of older ones the first in each period of
`1 / past_hz` stays until it is `past_s` old, and the others are thinned out. Where bytes run short, the past has
`PAST_SHARE` of them: above that its oldest frame goes, below it the oldest frames of full rate become past before their
time. So the newest seconds stay dense, and a memory too small for both shortens both. Without a past (`past_s` not
above `horizon_s`) the oldest frame goes.
"""

from __future__ import annotations

import enum
import threading
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from nvila_ros.types import NS_PER_S

MAX_DISORDER_NS = NS_PER_S
"""How far a stamp may lie before the newest and still be a frame that came late: transports reorder by less."""
PAST_SHARE = 0.25
"""Share of the bytes that the thinned past holds where bytes run short."""


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

    AGED = "aged"  # older than all that is kept
    THINNED = "thinned"  # past the horizon, and another frame stands for its time
    BYTES = "bytes"  # made room for newer ones
    TOO_LARGE = "too_large"  # alone above the bound of bytes
    LATE = "late"  # its stamp lies far behind the newest, unlike that of the frame before
    DAMAGED = "damaged"  # it could not be decoded when a question was about it
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


class _Run(Generic[F]):
    """Frames with ascending, distinct stamps, and what keeping them costs."""

    def __init__(self) -> None:
        self.frames: list[F] = []
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self.frames)

    def find(self, stamp_ns: int) -> int:
        return bisect_left(self.frames, stamp_ns, key=_STAMP)

    def between(self, start_ns: int, end_ns: int) -> list[F]:
        return self.frames[self.find(start_ns) : bisect_right(self.frames, end_ns, key=_STAMP)]

    def insert(self, at: int, frame: F) -> None:
        self.frames.insert(at, frame)
        self.num_bytes += frame.num_bytes

    def pop(self, at: int) -> F:
        frame = self.frames.pop(at)
        self.num_bytes -= frame.num_bytes
        return frame


class _Track(Generic[F]):
    """The frames of one camera: a thinned past, and all frames after it; without a newest frame there is no past.

    Attributes:
        late: the frame that came last, where it is far behind the newest; it is kept beside the bytes that are bounded.
        doubted_ns: where another camera's stamps jumped back to and this one's were not heard of since, or None.
    """

    def __init__(self) -> None:
        self.past: _Run[F] = _Run()
        self.recent: _Run[F] = _Run()
        self.late: F | None = None
        self.doubted_ns: int | None = None

    def is_of_another_past(self, stamp_ns: int) -> bool:
        """Whether it has kept still ahead of another camera, which now is at `stamp_ns`, for long enough."""
        is_doubted = self.doubted_ns is not None and stamp_ns - self.doubted_ns >= MAX_DISORDER_NS
        return is_doubted and self.newest_ns - stamp_ns > MAX_DISORDER_NS

    @property
    def oldest_ns(self) -> int:
        return (self.past.frames or self.recent.frames)[0].stamp_ns

    @property
    def newest_ns(self) -> int:
        return self.recent.frames[-1].stamp_ns


class FrameBuffer(Generic[F]):
    """A ring of frames per camera; safe to use from several threads. Ages count from the newest frame of a camera.

    Args:
        horizon_s: frames up to this age are all kept.
        max_bytes: bound over all cameras.
        past_s: up to this age frames are kept at a lower rate; none where this is not above horizon_s.
        past_hz: that rate.
    """

    def __init__(self, horizon_s: float, max_bytes: int, *, past_s: float = 0.0, past_hz: float = 1.0) -> None:
        self._horizon_ns = round(horizon_s * NS_PER_S)
        self._past_ns = round(past_s * NS_PER_S)
        self._has_past = self._past_ns > self._horizon_ns
        self._period_ns = round(NS_PER_S / past_hz)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._tracks: dict[str, _Track[F]] = {}
        self._num_dropped = Counter({reason.value: 0 for reason in DropReason})

    @property
    def horizon_ns(self) -> int:
        """Frames up to this age are all kept, as far as bytes allow."""
        return self._horizon_ns

    @property
    def kept_ns(self) -> int:
        """Up to this age some frames are kept, as far as bytes allow."""
        return max(self._horizon_ns, self._past_ns)

    @property
    def period_ns(self) -> int:
        """Of frames older than the horizon the first in each period of this length is kept."""
        return self._period_ns

    def push(self, frame: F) -> int:
        """Take a frame in, in order of its stamp.

        Returns:
            how far the stamp went back, in ns, where this made frames void; 0 as a rule.
        """
        with self._lock:
            if frame.num_bytes > self._max_bytes:
                self._num_dropped[DropReason.TOO_LARGE.value] += 1
                return 0
            track = self._tracks.setdefault(frame.camera, _Track())
            jump_ns = track.newest_ns - frame.stamp_ns if track.recent else 0
            late, track.late = track.late, None
            if jump_ns > MAX_DISORDER_NS:
                if late is None:
                    return self._hold(track, frame)
                jump_ns = track.newest_ns - late.stamp_ns
                self._begin_anew(track, late, frame)
            track.doubted_ns = None
            for other in self._held(self._tracks):
                if other.is_of_another_past(frame.stamp_ns):
                    self._empty(other)
            self._insert(track, frame)
            self._trim(track)
            return jump_ns if jump_ns > MAX_DISORDER_NS else 0

    def window(self, cameras: Sequence[str], start_ns: int, end_ns: int) -> list[list[F]]:
        """Return the frames captured in `[start_ns, end_ns]`, one ascending list per camera asked for."""
        with self._lock:
            tracks = [self._tracks.get(camera, _Track[F]()) for camera in cameras]
            return [t.past.between(start_ns, end_ns) + t.recent.between(start_ns, end_ns) for t in tracks]

    def newest_ns(self, cameras: Sequence[str]) -> int | None:
        """Return the stamp of the newest frame of these cameras, or None where they have none."""
        with self._lock:
            return max((track.newest_ns for track in self._held(cameras)), default=None)

    def discard(self, frame: F) -> None:
        """Drop a frame that turned out to be damaged, where it is still there."""
        with self._lock:
            track = self._tracks.get(frame.camera, _Track[F]())
            for run in (track.past, track.recent):
                at = run.find(frame.stamp_ns)
                if at < len(run) and run.frames[at] is frame:
                    self._drop(run, at, DropReason.DAMAGED)
            if track.past and not track.recent:
                track.recent.insert(0, track.past.pop(len(track.past) - 1))

    def clear(self) -> int:
        """Drop every frame, since the clock went back; returns how many there were."""
        with self._lock:
            return sum(self._empty(track) for track in self._tracks.values())

    def state(self, cameras: Sequence[str] | None = None) -> BufferState:
        """Return counts and span; frames and span of these cameras only, where some are named."""
        with self._lock:
            held = self._held(self._tracks if cameras is None else cameras)
            return BufferState(
                num_frames=sum(len(track.past) + len(track.recent) for track in held),
                num_bytes=self._num_bytes(),
                num_dropped=dict(self._num_dropped),
                oldest_ns=min((track.oldest_ns for track in held), default=None),
                newest_ns=max((track.newest_ns for track in held), default=None),
            )

    def _hold(self, track: _Track[F], frame: F) -> int:
        """Keep a frame aside that lies far behind the newest: the next one shows whether the stamps jumped back."""
        self._num_dropped[DropReason.LATE.value] += 1
        track.late = frame
        return 0

    def _begin_anew(self, track: _Track[F], late: F, frame: F) -> None:
        """Make frames before a jump back void; the first frame after it was kept aside."""
        self._empty(track)
        for other in self._held(self._tracks):
            other.doubted_ns = frame.stamp_ns
        if late.stamp_ns - frame.stamp_ns <= MAX_DISORDER_NS:
            self._num_dropped[DropReason.LATE.value] -= 1
            self._insert(track, late)

    def _held(self, cameras: Iterable[str]) -> list[_Track[F]]:
        return [self._tracks[name] for name in cameras if name in self._tracks and self._tracks[name].recent]

    def _num_bytes(self) -> int:
        return sum(track.past.num_bytes + track.recent.num_bytes for track in self._tracks.values())

    def _insert(self, track: _Track[F], frame: F) -> None:
        is_past = bool(track.past) and frame.stamp_ns <= track.past.frames[-1].stamp_ns
        run = track.past if is_past else track.recent
        at = run.find(frame.stamp_ns)
        if run.between(frame.stamp_ns, frame.stamp_ns):
            self._drop(run, at, DropReason.REPEATED)
        run.insert(at, frame)
        near = run.frames[max(at - 1, 0) : at + 2]
        if is_past and any(map(self._is_same_period, near, near[1:])):
            self._drop(run, at, DropReason.THINNED)

    def _trim(self, track: _Track[F]) -> None:
        while track.recent.frames[0].stamp_ns < track.newest_ns - self._horizon_ns:
            self._retire(track)
        while track.past and track.past.frames[0].stamp_ns < track.newest_ns - self._past_ns:
            self._drop(track.past, 0, DropReason.AGED)
        while self._num_bytes() > self._max_bytes:
            self._make_room()

    def _retire(self, track: _Track[F]) -> None:
        """Let the oldest frame of full rate become past, or leave where another stands for its time."""
        if not self._has_past:
            self._drop(track.recent, 0, DropReason.AGED)
        elif track.past and self._is_same_period(track.past.frames[-1], track.recent.frames[0]):
            self._drop(track.recent, 0, DropReason.THINNED)
        else:
            track.past.insert(len(track.past), track.recent.pop(0))

    def _make_room(self) -> None:
        """Take one step towards fewer bytes: thin while the past is below its share, else drop the oldest frame."""
        held = self._held(self._tracks)
        dense = [track for track in held if len(track.recent) > 1] if self._has_past else []
        past_bytes = sum(track.past.num_bytes for track in held)
        if dense and past_bytes <= PAST_SHARE * self._max_bytes:
            self._retire(min(dense, key=lambda track: track.recent.frames[0].stamp_ns))
            return
        oldest = min([track for track in held if track.past] or held, key=lambda track: track.oldest_ns)
        self._drop(oldest.past or oldest.recent, 0, DropReason.BYTES)

    def _is_same_period(self, frame: F, other: F) -> bool:
        return frame.stamp_ns // self._period_ns == other.stamp_ns // self._period_ns

    def _empty(self, track: _Track[F]) -> int:
        num_frames = len(track.past) + len(track.recent)
        self._num_dropped[DropReason.TIME_JUMP.value] += num_frames
        track.past, track.recent, track.doubted_ns, track.late = _Run(), _Run(), None, None
        return num_frames

    def _drop(self, run: _Run[F], at: int, reason: DropReason) -> None:
        run.pop(at)
        self._num_dropped[reason.value] += 1
