"""What frames became, so that each is encoded once: their visual tokens, within a bound of bytes.

The frame that was not asked for longest goes first: a stream moves on, and what no question looks at any more is of no
use. A frame that nearly repeats one of its camera's may share its tokens, where a threshold allows it.

Shapes: B blocks that the projector read, G visual tokens of a block, D decoder width.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from nvila_ros.preprocess.views import View


@dataclass(frozen=True, slots=True)
class FrameKey:
    """A frame and how it is shown.

    Attributes:
        digest: of its pixels.
        is_alone: shown as the only image of a prompt, which may be cut into tiles.
    """

    camera: str
    stamp_ns: int
    digest: bytes
    is_alone: bool


@dataclass(frozen=True, slots=True)
class Encoded:
    """What a frame became: its view, without the pixels, and its visual tokens, (B, G, D) float32.

    Attributes:
        thumbnail: (32, 32) uint8, or None where near repeats are not looked for.
    """

    view: View
    visual_BGD: np.ndarray
    thumbnail: np.ndarray | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that keeping it costs."""
        return self.visual_BGD.nbytes


class FrameCache:
    """Encoded frames, least recently used out first.

    Attributes:
        num_bytes: held.
        num_evicted: frames that made room for others.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[FrameKey, Encoded] = OrderedDict()
        self.num_bytes = self.num_evicted = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: FrameKey) -> Encoded | None:
        """Return what a frame became, if it is known, and take note that it is of use."""
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
        return found

    def put(self, key: FrameKey, encoded: Encoded) -> None:
        """Keep what a frame became; one larger than the bound is not kept."""
        if encoded.num_bytes > self._max_bytes or key in self._held:
            return
        self._held[key] = encoded
        self.num_bytes += encoded.num_bytes
        while self.num_bytes > self._max_bytes:
            _, oldest = self._held.popitem(last=False)
            self.num_bytes -= oldest.num_bytes
            self.num_evicted += 1

    def find_like(self, key: FrameKey, thumbnail: np.ndarray, threshold: float) -> Encoded | None:
        """Return what the camera's newest frame became whose thumbnail differs nowhere by more than a share of 255."""
        alike = [
            (known.stamp_ns, encoded)
            for known, encoded in self._held.items()
            if (known.camera, known.is_alone) == (key.camera, key.is_alone)
            and encoded.thumbnail is not None
            and np.abs(encoded.thumbnail.astype(np.int16) - thumbnail).max() <= threshold * 255
        ]
        return max(alike, key=lambda pair: pair[0])[1] if alike else None
