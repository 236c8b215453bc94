"""Frames to visual tokens, each frame through the tower at most once.

    frame -> view (tiles) -> [tower] -> features -> projector input -> [projector] -> visual tokens -> prompt parts

A frame is encoded by itself, also within a clip: pooling over frames comes after the projector. So a new frame in a
window costs one pass of the tower, and the others come from the cache.

Shapes: N tiles, B blocks that the projector reads, G visual tokens, D decoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from nvila_ros.errors import FrameError
from nvila_ros.runtime.contract import Engine
from nvila_ros.types import RawFrame, Stage
from nvila_ros.video.thumbnails import thumbnail
from nvila_ros.visual.encode import VisualPrompt, arrange, merge_features
from nvila_ros.visual.frame_cache import EncodedFrame, FrameCache, FrameKey
from nvila_ros.visual.tiles import normalize_tiles
from nvila_ros.visual.views import View, clip_length, view_image, view_images


class FrameLike(Protocol):
    """What the encoder needs of a frame; the pixels are asked for only where it is not encoded yet."""

    @property
    def camera(self) -> str: ...  # noqa: D102

    @property
    def stamp_ns(self) -> int: ...  # noqa: D102

    @property
    def frame_id(self) -> str: ...  # noqa: D102

    @property
    def digest(self) -> bytes: ...  # noqa: D102

    @property
    def image(self) -> np.ndarray: ...  # noqa: D102

    @property
    def raw(self) -> RawFrame: ...  # noqa: D102


class ProgressHook(Protocol):
    """Called at each step of the work: it may end the work by raising, and adds up where the time went."""

    def check(self) -> None:
        """Raise where the work should end."""

    def mark(self, stage: Stage) -> None:
        """Add the time since the last mark to a stage."""


class SilentProgress:
    """The hook of work that no request waits for; `check` may stop it by an exception."""

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self._check = check

    def check(self) -> None:
        """Go on, or raise."""
        self._check()

    def mark(self, stage: Stage) -> None:
        """Record nothing."""


class FrameEncoder:
    """Owns the visual tokens of frames.

    Args:
        engine: runs tower and projector.
        max_bytes: of visual tokens kept; 0 keeps none.
        repeat_threshold: a frame whose thumbnail differs nowhere by more than this share of full scale from an encoded
            one of its camera takes that one's tokens; 0 never does.
        on_encoded: takes the visual tokens of each frame that went through the tower.

    Attributes:
        cache: the encoded frames.
        num_encoded: frames that went through the tower.
        num_found: frames that were found in the cache.
        num_shared: frames that took the tokens of a near repeat.
    """

    def __init__(
        self,
        engine: Engine,
        max_bytes: int,
        repeat_threshold: float,
        on_encoded: Callable[[np.ndarray], None] = lambda visual_BGD: None,
    ) -> None:
        self._engine, self._spec = engine, engine.spec
        self._threshold, self._on_encoded = repeat_threshold, on_encoded
        self.cache = FrameCache(max_bytes)
        self.num_encoded = self.num_found = self.num_shared = 0

    @property
    def frames_per_group(self) -> int:
        """Frames of a clip that the video encoder averages together, 1 for none."""
        return self._spec.frames_per_group if self._spec.video_mode == "video" else 1

    def num_shown(self, frames: Sequence[FrameLike]) -> int:
        """Return how many frames, the newest, the model is shown: of a clip, those that make whole groups."""
        return self._clip_length(frames) or len(frames)

    def encode_frames(self, frames: Sequence[FrameLike], progress: ProgressHook) -> VisualPrompt:
        """Return the visual tokens of frames in capture order, and how the prompt shows them."""
        if not frames:
            return VisualPrompt(np.empty((0, self._spec.decoder.width), np.float32), ())
        encoded = [self.encode(frame, progress, is_alone=len(frames) == 1) for frame in frames]
        visual_BGD = np.concatenate([each.visual_BGD for each in encoded])
        several = View((), "clip" if self._clip_length(frames) else "image")
        shown = arrange(self._spec, encoded[0].view if len(frames) == 1 else several, visual_BGD)
        progress.mark(Stage.VISION)
        return shown

    def encode(self, frame: FrameLike, progress: ProgressHook, *, is_alone: bool) -> EncodedFrame:
        """Return the visual tokens of a frame, alone in its prompt or among others."""
        # Alone it is cut into tiles, but not by every model.
        key = FrameKey(frame.camera, frame.stamp_ns, frame.digest, is_alone and self._spec.image_mode != "resize")
        found = self.cache.get(key)
        if found is not None:
            self.num_found += 1
            return found
        small = _thumbnail(frame) if self._threshold else None
        encoded = None if small is None else self.cache.find_like(key, small, self._threshold)
        if encoded is not None:
            self.num_shared += 1
        else:
            encoded = replace(self._encode(frame.image, progress, key.is_alone), thumbnail=small)
            self.num_encoded += 1
            self._on_encoded(encoded.visual_BGD)
        self.cache.put(key, encoded)
        return encoded

    def _encode(self, image: np.ndarray, progress: ProgressHook, is_alone: bool) -> EncodedFrame:
        progress.check()
        spec, engine = self._spec, self._engine
        view = view_image(spec, image) if is_alone else view_images(spec, [image])
        tile_NCHW = normalize_tiles(view.tiles, spec.pixel_dtype)
        progress.mark(Stage.PREPROCESS)
        # Few at once: the tower dwarfs the calls, and a cancel waits for one call only.
        size = engine.batch_tiles
        feat_NPE = np.concatenate([engine.vision(tile) for tile in _batches(tile_NCHW, size, progress.check)])
        merged_BPE = merge_features(spec, view, feat_NPE)
        visual_BGD = np.concatenate([engine.project(block) for block in _batches(merged_BPE, size, progress.check)])
        progress.mark(Stage.VISION)
        return EncodedFrame(replace(view, tiles=()), visual_BGD)

    def _clip_length(self, frames: Sequence[FrameLike]) -> int:
        return clip_length(self._spec, len(frames), len({frame.camera for frame in frames}))


def _thumbnail(frame: FrameLike) -> np.ndarray | None:
    try:
        return thumbnail(frame.raw)
    except FrameError:  # only the robot's own cv_bridge knows this encoding: the frame is encoded like any other
        return None


def _batches(array: np.ndarray, size: int, check: Callable[[], None]) -> Iterator[np.ndarray]:
    """Yield the rows of an array in batches, calling `check` before each."""
    for first in range(0, len(array), size):
        check()
        yield array[first : first + size]
