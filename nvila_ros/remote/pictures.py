"""Frames as data URIs: each is written once, however many questions show it."""

from __future__ import annotations

import base64
from collections import OrderedDict

from nvila_ros.remote.settings import RemoteSettings
from nvila_ros.video.picture_writing import as_file
from nvila_ros.visual.frame_encoder import FrameLike

MAX_KEPT_BYTES = 32 << 20


class SentPictures:
    """Writes and keeps them; used on one thread.

    Args:
        settings: quality and size.

    Attributes:
        num_written: pictures that were written.
        num_found: that had been before.
    """

    def __init__(self, settings: RemoteSettings) -> None:
        self._quality, self._max_side = settings.jpeg_quality, settings.max_side
        self._kept: OrderedDict[bytes, str] = OrderedDict()
        self._num_bytes = 0
        self.num_written = self.num_found = 0

    def uri(self, frame: FrameLike) -> str:
        """Return a frame as a data URI.

        Raises:
            FrameError: it cannot be decoded or written.
        """
        key = frame.digest
        if key in self._kept:
            self.num_found += 1
            self._kept.move_to_end(key)
            return self._kept[key]
        content = as_file(frame.raw.image, lambda: frame.image, self._quality, max_side=self._max_side)
        kind = "jpeg" if content.startswith(b"\xff\xd8") else "png"
        uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        self.num_written += 1
        self._kept[key] = uri
        self._num_bytes += len(uri)
        while self._num_bytes > MAX_KEPT_BYTES and len(self._kept) > 1:
            self._num_bytes -= len(self._kept.popitem(last=False)[1])
        return uri
