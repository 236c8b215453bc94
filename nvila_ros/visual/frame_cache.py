"""The visual tokens of encoded frames, so that each is encoded once, within a bound of bytes.

The least recently used frame is evicted first: a stream moves on, and old frames are asked about no more. A frame that
nearly repeats an earlier one of its camera may share its tokens, where a threshold allows it; they count once.

Shapes: B blocks that the projector read, G visual tokens of a block, D decoder width.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

import numpy as np

from nvila_ros.video.thumbnails import is_like
from nvila_ros.visual.views import View


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
class EncodedFrame:
    """A frame's view, without the pixels, and its visual tokens, (B, G, D) float32.

    Attributes:
        thumbnail: (32, 32) uint8, or None where near repeats are not searched.
    """

    view: View
    visual_BGD: np.ndarray
    thumbnail: np.ndarray | None = None


ENTRY_BYTES = 2048  # about what a frame costs beside its tokens: its key, and a thumbnail


class FrameCache:
    """Encoded frames, least recently used out first.

    Attributes:
        num_bytes: held.
        num_evicted: frames that made room for others.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._held: OrderedDict[FrameKey, EncodedFrame] = OrderedDict()
        self._num_sharing: Counter[int] = Counter()  # frames by the id of their tokens
        self.num_bytes = self.num_evicted = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: FrameKey) -> EncodedFrame | None:
        """Return an encoded frame, if it is held, and mark it as recently used."""
        found = self._held.get(key)
        if found is not None:
            self._held.move_to_end(key)
        return found

    def put(self, key: FrameKey, encoded: EncodedFrame) -> None:
        """Keep an encoded frame; one larger than the bound is not kept."""
        if ENTRY_BYTES + encoded.visual_BGD.nbytes > self._max_bytes or key in self._held:
            return
        self._held[key] = encoded
        self._count(encoded, 1)
        self._evict()

    def limit(self, max_bytes: int) -> None:
        """Set the bound anew."""
        self._max_bytes = max_bytes
        self._evict()

    def _evict(self) -> None:
        while self.num_bytes > self._max_bytes:
            _, oldest = self._held.popitem(last=False)
            self._count(oldest, -1)
            self.num_evicted += 1

    def _count(self, encoded: EncodedFrame, change: int) -> None:
        tokens = encoded.visual_BGD
        before, after = self._num_sharing[id(tokens)], self._num_sharing[id(tokens)] + change
        self._num_sharing[id(tokens)] = after
        self.num_bytes += change * ENTRY_BYTES + (bool(after) - bool(before)) * tokens.nbytes
        if not after:
            del self._num_sharing[id(tokens)]

    def let_go(self, key: FrameKey) -> None:
        """Make a frame the first to be evicted, where it is held: something else stands for it."""
        if key in self._held:
            self._held.move_to_end(key, last=False)

    def find_like(self, key: FrameKey, thumbnail: np.ndarray, threshold: float) -> EncodedFrame | None:
        """Return the camera's newest frame whose thumbnail differs nowhere by more than a share of 255."""
        alike = [
            (known.stamp_ns, encoded)
            for known, encoded in self._held.items()
            if (known.camera, known.is_alone) == (key.camera, key.is_alone)
            and encoded.thumbnail is not None
            and is_like(encoded.thumbnail, thumbnail, threshold)
        ]
        return max(alike, key=lambda pair: pair[0])[1] if alike else None
