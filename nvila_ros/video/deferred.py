"""The frames that a question is shown: decoded when they are looked at first, and without those that are damaged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nvila_ros.errors import FrameError, NoFramesError
from nvila_ros.types import EncodedImage, Frame, Query, RawFrame
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.compressed import decode_compressed
from nvila_ros.video.image_decoding import decode
from nvila_ros.video.selection import Freshness, select_frames

MAX_CHOICES = 3
"""How often frames are chosen anew where some are damaged; then the question is about those that are whole."""
OnDamage = Callable[[RawFrame, FrameError], None]
"""Takes each frame that is dropped since it is damaged, and why."""


def decode_raw(frame: RawFrame) -> Frame:
    """Convert a frame to RGB.

    Raises:
        FrameError: it is damaged, or of an encoding that `image_decoding` does not know.
    """
    image = decode_compressed(frame.image) if isinstance(frame.image, EncodedImage) else decode(frame.image)
    return Frame(image=image, stamp_ns=frame.stamp_ns, camera=frame.camera, frame_id=frame.frame_id)


class DeferredFrame:
    """A frame as it came, with what `Frame` has; most that are asked about are known already and are not decoded.

    Args:
        raw: the frame.
        decode: converts it; raises FrameError.
    """

    def __init__(self, raw: RawFrame, decode: Callable[[RawFrame], Frame]) -> None:
        self.raw, self._decode = raw, decode
        self._frame: Frame | None = None
        self.stamp_ns, self.camera, self.frame_id = raw.stamp_ns, raw.camera, raw.frame_id

    @property
    def digest(self) -> bytes:
        """What stands for the pixels, as they came."""
        return self.raw.digest

    @property
    def image(self) -> np.ndarray:
        """The pixels, (H, W, 3) uint8 RGB.

        Raises:
            FrameError: they cannot be converted.
        """
        if self._frame is None:
            self._frame = self._decode(self.raw)
            self.raw.memo.is_whole = True
        return self._frame.image

    def damage(self) -> FrameError | None:
        """Return why it cannot be decoded; None where it can. A frame that once could is not decoded for this."""
        try:
            if not self.raw.memo.is_whole:
                _ = self.image
        except FrameError as error:
            return error
        return None


def select_whole(
    buffer: FrameBuffer[RawFrame],
    query: Query,
    decode: Callable[[RawFrame], Frame],
    *,
    fresh: Freshness | None = None,
    on_damage: OnDamage = lambda frame, error: None,
    frames_per_group: int = 1,
) -> list[DeferredFrame]:
    """Choose the frames that a query is about, as `select_frames`, without those that are damaged.

    Damaged frames are dropped from the buffer and counted there, and others of the window take their places.

    Raises:
        NoFramesError: as `select_frames`.
        QueryError: likewise.
        FrameError: no frame of a camera can be decoded; the message says why the last cannot.
    """
    last: FrameError | None = None
    whole: list[DeferredFrame] = []
    seen: dict[int, DeferredFrame] = {}  # frames that are chosen again are not decoded again
    for _ in range(MAX_CHOICES):
        try:
            raw = select_frames(buffer, query, fresh, frames_per_group=frames_per_group)
        except NoFramesError as error:
            raise last or error from error
        chosen = [seen.setdefault(id(each), DeferredFrame(each, decode)) for each in raw]
        damages = [frame.damage() for frame in chosen]
        whole = [frame for frame, damage in zip(chosen, damages, strict=True) if damage is None]
        for frame, damage in dict(zip(chosen, damages, strict=True)).items():  # a frame may be shown twice
            if damage is not None:
                last = damage
                buffer.discard(frame.raw)
                on_damage(frame.raw, damage)
        if len(whole) == len(chosen):
            break
    if last is not None and {frame.camera for frame in whole} != set(query.cameras):
        raise last
    return whole
