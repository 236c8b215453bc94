"""Clips filmed by a camera of this machine, through OpenCV."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import cv2
import numpy as np

from nvila_ros.errors import FrameError, QueryError
from nvila_ros.types import Frame


class LiveCamera:
    """A camera of this machine, by its index.

    Raises:
        FrameError: there is no such camera, or another program holds it.
    """

    def __init__(self, index: int, capture: cv2.VideoCapture | None = None) -> None:
        self.name = f"camera:{index}"
        self._capture = cv2.VideoCapture(index) if capture is None else capture
        if not self._capture.isOpened():
            raise FrameError(f"camera {index} cannot be opened; look for it with: ls /dev/video*")

    def record_clip(self, num_frames: int, window_s: float, now_ns: Callable[[], int] = time.time_ns) -> list[Frame]:
        """Film for window_s and keep num_frames spread evenly over it; only these are ever decoded.

        Raises:
            QueryError: num_frames or window_s is out of its range.
            FrameError: the camera stopped giving frames.
        """
        if num_frames < 1 or not 0 <= window_s < math.inf:
            raise QueryError(f"a clip needs at least 1 frame over at least 0 s, got {num_frames} over {window_s:g} s")
        wanted_s = np.linspace(0.0, window_s, num_frames).tolist()
        frames: list[Frame] = []
        start_ns = None
        while len(frames) < num_frames:
            is_grabbed = self._capture.grab()
            stamp_ns = now_ns()
            start_ns = stamp_ns if start_ns is None else start_ns
            if is_grabbed and (stamp_ns - start_ns) / 1e9 < wanted_s[len(frames)]:
                continue
            is_read, bgr = self._capture.retrieve() if is_grabbed else (False, None)
            if not is_read or bgr is None:
                raise FrameError(f"{self.name} gave no frame after {len(frames)} of {num_frames}; is it unplugged?")
            image = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))
            frames.append(Frame(image=image, stamp_ns=stamp_ns, camera=self.name))
        return frames

    def close(self) -> None:
        """Give the camera back."""
        self._capture.release()
