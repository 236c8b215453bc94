"""Notices that the frames of a camera do not arrive, and why.

In: once a second, how many publishers match, how many frames came and how many the middleware knows to be lost. Out:
why frames are missing, if they are. Four signs count: no publisher; publishers, but never a frame; none for much longer
than between those before; and more frames lost than came.
"""

from __future__ import annotations

import enum
from collections import deque
from pathlib import Path

from nvila_ros.types import NS_PER_S

PATIENCE_NS = 3 * NS_PER_S
"""How long a sign must last: discovery and a camera's start take a second or two."""
MOST_GAPS = 3
"""How often the longest of the last gaps between frames may pass without one: a camera may be slow."""


class Loss(enum.Enum):
    """What is wrong with the frames of a camera."""

    ABSENT = "absent"  # nobody publishes
    QOS = "qos"  # the publishers offer a quality of service that was not asked for
    SILENT = "silent"  # publishers match, and nothing ever came
    STOPPED = "stopped"  # publishers match, and nothing comes any more
    LOST = "lost"  # most frames are lost on the way


class LossWatch:
    """Watches one camera; not thread-safe."""

    def __init__(self) -> None:
        self._history: deque[tuple[int, int, int]] = deque()  # (now_ns, received, lost) since the oldest that counts
        self._heard_ns: int | None = None  # when frames came last, or publishers did
        self._absent_ns: int | None = None  # since when nobody publishes
        self._num_received = 0
        self._gaps_ns: deque[int] = deque(maxlen=4)

    def check(
        self, now_ns: int, *, num_publishers: int, num_received: int, num_lost: int, has_qos_mismatch: bool
    ) -> Loss | None:
        """Return what has been wrong for the last seconds, or None.

        Args:
            now_ns: steady clock.
            num_publishers: publishers of the topic, matching or not.
            num_received: frames that came since the start.
            num_lost: frames known to be lost since the start.
            has_qos_mismatch: whether the middleware reported a publisher with an incompatible quality of service.
        """
        if not num_publishers:
            self._history.clear()
            self._heard_ns = None
            self._absent_ns = now_ns if self._absent_ns is None else self._absent_ns
            return Loss.ABSENT if now_ns - self._absent_ns >= PATIENCE_NS else None
        self._absent_ns = None
        self._hear(now_ns, num_received)
        self._history.append((now_ns, num_received, num_lost))
        while len(self._history) > 1 and self._history[1][0] <= now_ns - PATIENCE_NS:
            self._history.popleft()
        then_ns, received, lost = self._history[0]
        if now_ns - then_ns < PATIENCE_NS:
            return None
        if num_received == received and has_qos_mismatch:
            return Loss.QOS
        if num_lost - lost > num_received - received:
            return Loss.LOST
        if not self._is_quiet(now_ns):
            return None
        return Loss.STOPPED if num_received else Loss.SILENT

    def _hear(self, now_ns: int, num_received: int) -> None:
        if self._heard_ns is None:
            self._heard_ns = now_ns
        elif num_received > self._num_received:
            self._gaps_ns.append(now_ns - self._heard_ns)
            self._heard_ns = now_ns
        self._num_received = num_received

    def _is_quiet(self, now_ns: int) -> bool:
        assert self._heard_ns is not None, "publishers are listened to from the first on"
        return now_ns - self._heard_ns >= max(PATIENCE_NS, MOST_GAPS * max(self._gaps_ns, default=0))


def explain(loss: Loss, profile: Path | None) -> str:
    """Return why frames are missing and what to do.

    Args:
        loss: what was noticed.
        profile: a Fast DDS profile with room for images; None with another middleware.
    """
    if loss is Loss.QOS:
        return (
            "the publisher's quality of service does not match, so no image can arrive; "
            "set image_reliability to best_effort, or let the camera publish reliably"
        )
    if loss is Loss.ABSENT:
        return "nobody publishes there; start the camera, or set camera_topics to the topic that it publishes on"
    if loss is Loss.STOPPED:
        return "a publisher is there, but no image comes any more; check whether the camera is paused or hangs"
    sign = "a publisher is there, but no image came" if loss is Loss.SILENT else "most images are lost"
    if profile is None:
        return f"{sign}; check the network and the camera"
    return (
        f"{sign}; if the camera runs, the shared memory of its Fast DDS is too small for its images: start the "
        f"camera with FASTDDS_DEFAULT_PROFILES_FILE={profile} (before Kilted: FASTRTPS_DEFAULT_PROFILES_FILE)"
    )
