"""Cameras for processes without ROS: the synthetic world, a video file or pictures in a loop, a webcam.

Each fills the buffer on a thread of its own; the stamp is the clock at capture.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from nvila_ros.errors import FrameError
from nvila_ros.http.services import CameraState
from nvila_ros.types import NS_PER_S, Frame, RawFrame
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.media import open_media
from nvila_ros.world.frame_source import WorldSource

LOG = logging.getLogger(__name__)
STILL_HZ = 10.0
"""Rate of a single picture."""
RATE_S = 1.0


class Grab(Protocol):
    """Takes one frame."""

    def __call__(self) -> tuple[int, np.ndarray]:
        """Return a stamp and (H, W, 3) uint8 RGB; waits until the frame is due."""
        ...


class SourceThread:
    """One camera.

    Args:
        name: by which queries address it.
        source: for people.
        grab: takes a frame; raises FrameError where there is none.
    """

    def __init__(self, name: str, source: str, grab: Grab) -> None:
        self._name, self._source, self._grab = name, source, grab
        self._received, self._rate_hz, self._warning = 0, 0.0, ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, buffer: FrameBuffer[RawFrame]) -> None:
        """Begin to fill the buffer."""
        self._thread = threading.Thread(target=self._run, args=(buffer,), name=f"nvila_{self._name}", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2 * RATE_S)

    def state(self) -> CameraState:
        """Return how its frames arrive."""
        return CameraState(
            name=self._name,
            source=self._source,
            rate_hz=self._rate_hz,
            received=self._received,
            warning=self._warning,
        )

    def _run(self, buffer: FrameBuffer[RawFrame]) -> None:
        since_s, counted = time.monotonic(), 0
        while not self._stop.is_set():
            try:
                stamp_ns, image = self._grab()
            except FrameError as error:
                self._warn(str(error))
                self._stop.wait(RATE_S)
                continue
            buffer.push(Frame(image=image, stamp_ns=stamp_ns, camera=self._name).raw)
            self._received, self._warning = self._received + 1, ""
            elapsed_s = time.monotonic() - since_s
            if elapsed_s >= RATE_S:
                self._rate_hz = (self._received - counted) / elapsed_s
                since_s, counted = time.monotonic(), self._received

    def _warn(self, warning: str) -> None:
        if warning != self._warning:
            LOG.warning("camera=%s %s", self._name, warning)
        self._warning, self._rate_hz = warning, 0.0


class _Paced:
    """Takes what a source shows at a time, `rate_hz` times a second."""

    def __init__(self, frame_at: Callable[[int], np.ndarray], rate_hz: float) -> None:
        self._frame_at, self._period_s = frame_at, 1 / rate_hz
        self._next_s = time.monotonic()

    def __call__(self) -> tuple[int, np.ndarray]:
        time.sleep(max(0.0, self._next_s - time.monotonic()))
        self._next_s = max(self._next_s + self._period_s, time.monotonic() - self._period_s)
        stamp_ns = time.time_ns()
        return stamp_ns, self._frame_at(stamp_ns)


class _Webcam:
    """Takes the frames of a camera of this machine as they come; one that was unplugged is opened again."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._capture: cv2.VideoCapture | None = None

    def __call__(self) -> tuple[int, np.ndarray]:
        if self._capture is None:
            self._capture = cv2.VideoCapture(self._index)
        is_grabbed = self._capture.isOpened() and self._capture.grab()
        stamp_ns = time.time_ns()
        is_read, bgr = self._capture.retrieve() if is_grabbed else (False, None)
        if not is_read or bgr is None:
            self._capture.release()
            self._capture = None
            raise FrameError(f"camera {self._index} gives no frame; look for it with: ls /dev/video*")
        return stamp_ns, np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


def open_source(name: str, source: str, *, size: tuple[int, int], rate_hz: float) -> SourceThread:
    """Return a camera, not started yet.

    Args:
        name: by which queries address it.
        source: `world` or `world:SEED`, the index of a webcam, or the path of a video, a picture or a folder of them.
        size: px of the world.
        rate_hz: of the world.

    Raises:
        FrameError: there is nothing there that can be read as frames.
        ConfigError: a size that no world is drawn for.
    """
    if match := re.fullmatch(r"world(?::(\d{1,9}))?", source, re.ASCII):
        world = WorldSource(int(match[1] or 0), *size)
        return SourceThread(name, source, _Paced(world.frame_at, rate_hz))
    if re.fullmatch(r"\d{1,3}", source, re.ASCII):
        return SourceThread(name, f"/dev/video{source}", _Webcam(int(source)))
    return SourceThread(name, source, _loop(Path(source)))


def _loop(path: Path) -> _Paced:
    """Return a video or pictures in an endless loop, true to time."""
    media = open_media(path)
    stamps_ns, count = media.stamps_ns, len(media.stamps_ns)
    if count < 2:
        return _Paced(lambda stamp_ns: media.read(0), STILL_HZ)
    gap_ns = int(stamps_ns[-1]) // (count - 1)
    begin_ns, round_ns = time.time_ns(), int(stamps_ns[-1]) + gap_ns

    def frame_at(stamp_ns: int) -> np.ndarray:
        since_ns = max(stamp_ns - begin_ns, 0) % round_ns
        return media.read(int(np.searchsorted(stamps_ns, since_ns, side="right")) - 1)

    return _Paced(frame_at, NS_PER_S / gap_ns)
