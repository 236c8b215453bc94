"""Buffers of small frames, and the stamps that they hold."""

from __future__ import annotations

from nvila_ros.types import NS_PER_S, RawFrame
from nvila_ros.video.buffer import FrameBuffer
from tests.tiny import raw_frame

CAMERAS = ("front", "rear")
FRAME_BYTES = raw_frame(0).num_bytes


def new_buffer(horizon_s: float = 10.0, max_bytes: int = 1 << 20) -> FrameBuffer[RawFrame]:
    return FrameBuffer(horizon_s, max_bytes)


def stamps_s(buffer: FrameBuffer[RawFrame], camera: str = "camera") -> list[float]:
    (frames,) = buffer.window([camera], -(1 << 62), 1 << 62)
    return [frame.stamp_ns / NS_PER_S for frame in frames]
