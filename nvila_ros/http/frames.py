"""Frames of the buffer as JPEG files, for viewers.

A picture is encoded on a thread of its own, one at a time, and all viewers of a camera share it: that of the newest
frame is made at most once in `FRAME_S`, however many look. A frame that came as JPEG and is not to be made smaller is
passed on as it came.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from nvila_ros.errors import FrameError
from nvila_ros.http.limits import FRAME_S
from nvila_ros.serving.answering import Answering
from nvila_ros.types import RawFrame
from nvila_ros.video.picture_writing import as_file

QUALITY = 80
MAX_KEPT_BYTES = 32 << 20
POLL_S = 0.02
WIDTHS = (160, 320, 480, 640, 960, 1280, 1920)
"""To which pictures are made smaller, px: few, so that viewers share them."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame as a JPEG file."""

    content: bytes
    camera: str
    stamp_ns: int


class Pictures:
    """Makes and keeps JPEG files; used on the door's loop."""

    def __init__(self, answering: Answering) -> None:
        self._answering = answering
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nvila_pictures")
        self._kept: OrderedDict[tuple[str, int, int], Picture] = OrderedDict()
        self._num_bytes = 0
        self._newest: dict[tuple[str, int], tuple[float, Picture]] = {}
        self._making: dict[tuple[str, int], asyncio.Task[Picture]] = {}

    async def newest(self, camera: str, width: int, after_ns: int, timeout_s: float) -> Picture | None:
        """Return the newest frame of a camera, or None where there is none newer than `after_ns` in that time.

        Args:
            camera: its name.
            width: px that the picture is made smaller to; 0 leaves it as it is.
            after_ns: of the frame that the viewer has.
            timeout_s: how long to wait for one.
        """
        end = time.monotonic() + timeout_s
        while True:
            newest_ns = self._answering.buffer.newest_ns([camera])
            if newest_ns is not None and newest_ns != after_ns:
                picture = await self._shared(camera, width)
                if picture is not None and picture.stamp_ns != after_ns:
                    return picture
            if time.monotonic() >= end:
                return None
            await asyncio.sleep(POLL_S)

    async def at(self, camera: str, width: int, stamp_ns: int) -> Picture | None:
        """Return the frame of a stamp, or None where the buffer has it no more."""
        kept = self._kept.get((camera, stamp_ns, width))
        if kept is not None:
            return kept
        frames = self._answering.buffer.window([camera], stamp_ns, stamp_ns)[0]
        return self._keep(await self._make(frames[0], width), width) if frames else None

    @staticmethod
    def width_for(width: int) -> int:
        """Return the width that is made for a viewer who wants one: the next larger, or 0 for the frame's own."""
        return next((each for each in WIDTHS if each >= width), 0) if width else 0

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _shared(self, camera: str, width: int) -> Picture | None:
        """Return a picture of the newest frame that is at most `FRAME_S` old, as all other viewers get it."""
        key = (camera, width)
        made_s, picture = self._newest.get(key, (0.0, None))
        if picture is not None and time.monotonic() - made_s < FRAME_S:
            return picture
        if key not in self._making:
            self._making[key] = asyncio.ensure_future(self._make_newest(camera, width))
        return await asyncio.shield(self._making[key])

    async def _make_newest(self, camera: str, width: int) -> Picture:
        key = (camera, width)
        try:
            newest_ns = self._answering.buffer.newest_ns([camera])
            frames = self._answering.buffer.window([camera], newest_ns or 0, newest_ns or 0)[0]
            if not frames:
                raise FrameError(f"camera {camera} has no frame now")
            started_s = time.monotonic()
            picture = await self._make(frames[0], width)
            self._newest[key] = started_s, picture
            return picture
        finally:
            del self._making[key]

    async def _make(self, frame: RawFrame, width: int) -> Picture:
        loop = asyncio.get_running_loop()
        content = await loop.run_in_executor(self._thread, self._encode, frame, width)
        return Picture(content, frame.camera, frame.stamp_ns)

    def _encode(self, frame: RawFrame, width: int) -> bytes:
        return as_file(frame.image, lambda: self._answering.decode(frame).image, QUALITY, max_width=width)

    def _keep(self, picture: Picture, width: int) -> Picture:
        key = (picture.camera, picture.stamp_ns, width)
        if key in self._kept:  # another viewer asked for it at the same time
            return self._kept[key]
        self._kept[key] = picture
        self._num_bytes += len(picture.content)
        while self._num_bytes > MAX_KEPT_BYTES:
            self._num_bytes -= len(self._kept.popitem(last=False)[1].content)
        return picture
