"""Frames to visual tokens, each frame through the tower at most once.

    frame -> view (tiles) -> [tower] -> features -> projector input -> [projector] -> visual tokens -> prompt parts

A frame is encoded by itself, also within a clip: pooling over frames comes after the projector. So a new frame in a
window costs one pass of the tower, and the others come from the cache. Of a frame that is cut into tiles, only those
pass the tower whose pixels changed.

Shapes: N tiles, P patches of a tile, E vision width, B blocks that the projector reads, G visual tokens, D decoder
width.
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
from nvila_ros.visual.changes import SHOW_ALL, ChangeRule, choose_changed
from nvila_ros.visual.clip_groups import group_key, pool_group, show_groups
from nvila_ros.visual.encode import VisualPrompt, arrange, merge_features
from nvila_ros.visual.frame_cache import ENTRY_BYTES, EncodedFrame, FrameCache, FrameKey
from nvila_ros.visual.tile_cache import TileCache
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
        max_bytes: kept of frames and tiles; 0 keeps none. Tiles take at most half, frames what those leave.
        repeat_threshold: a frame whose thumbnail differs nowhere by more than this share of full scale from an encoded
            one of its camera takes that one's tokens, and so does a tile; 0 never does.
        on_encoded: takes the visual tokens of each frame that is not a near repeat.
        changes: which frames of a clip of one camera are shown.

    Attributes:
        cache: the encoded frames.
        tiles: what was made of the tiles of frames that are cut.
        num_encoded: frames that went through the tower, wholly or in part.
        num_found: frames that were found in the cache.
        num_shared: frames that took the tokens of a near repeat, or whose tiles were all known.
        remark: what people should know of the bound, or empty.
    """

    def __init__(
        self,
        engine: Engine,
        max_bytes: int,
        repeat_threshold: float,
        on_encoded: Callable[[np.ndarray], None] = lambda visual_BGD: None,
        changes: ChangeRule = SHOW_ALL,
    ) -> None:
        self._engine, self._spec = engine, engine.spec
        self._threshold, self._on_encoded = repeat_threshold, on_encoded
        self._max_bytes, self._changes, self.remark = max_bytes, changes, ""
        self.cache = FrameCache(max_bytes)
        self.tiles = TileCache(max_bytes // 2, repeat_threshold)
        self.num_encoded = self.num_found = self.num_shared = 0

    @property
    def frames_per_group(self) -> int:
        """Frames of a clip that the video encoder averages together, 1 for none."""
        return self._spec.frames_per_group if self._spec.video_mode == "video" else 1

    def num_shown(self, frames: Sequence[FrameLike]) -> int:
        """Return how many frames, the newest, the model is shown: of a clip, those that make whole groups."""
        return self._clip_length(frames) or len(frames)

    def encode_frames(
        self, frames: Sequence[FrameLike], progress: ProgressHook, *, is_anchored: bool = False
    ) -> VisualPrompt:
        """Return the visual tokens of frames in capture order, and how the prompt shows them.

        Args:
            frames: as many as `num_shown` says.
            progress: of the work.
            is_anchored: other questions will be about the same groups of these frames, so each is kept as its average.
        """
        if not frames:
            return VisualPrompt(np.empty((0, self._spec.decoder.width), np.float32), ())
        is_clip = bool(self._clip_length(frames))
        if is_anchored and self.frames_per_group > 1 and is_clip:
            return self._encode_groups(frames, progress)
        encoded = [self.encode(frame, progress, is_alone=len(frames) == 1) for frame in frames]
        visual_BGD = np.concatenate([each.visual_BGD for each in encoded])
        self._check_room(len(frames), [each.visual_BGD for each in encoded])
        if len(frames) == 1:
            shown, visual = [0], arrange(self._spec, encoded[0].view, visual_BGD)
        else:
            size = self._spec.frames_per_group if is_clip else 1
            shown = _members(self._choose(frames, visual_BGD, size), size)
            visual = arrange(self._spec, View((), "clip" if is_clip else "image"), visual_BGD[shown])
        progress.mark(Stage.VISION)
        return replace(visual, shown=tuple(shown))

    def _choose(self, frames: Sequence[FrameLike], visual_FGD: np.ndarray, size: int) -> list[int]:
        """Return which groups of `size` frames are shown: all, or of one camera those that changed."""
        if not self._changes.threshold or len({frame.camera for frame in frames}) > 1:
            return list(range(len(frames) // size))
        groups = (visual_FGD[first : first + size] for first in range(0, len(frames), size))
        compared = visual_FGD if size == 1 else np.concatenate([pool_group(self._spec, group) for group in groups])
        return choose_changed(compared, self._changes)

    def _encode_groups(self, frames: Sequence[FrameLike], progress: ProgressHook) -> VisualPrompt:
        """Return a clip of whole groups. The newest is not over, so its frames are kept; of the others the average."""
        size = self.frames_per_group
        groups = [frames[first : first + size] for first in range(0, len(frames), size)]
        pooled = [self._encode_passed(group, progress) for group in groups[:-1]]
        newest = self._encode_each(groups[-1], progress)
        self._check_room(len(frames), [*pooled, *(each.visual_BGD for each in newest)])
        pooled.append(pool_group(self._spec, np.concatenate([each.visual_BGD for each in newest])))
        shown = choose_changed(np.concatenate(pooled), self._changes)
        visual = show_groups(self._spec, [pooled[index] for index in shown])
        progress.mark(Stage.VISION)
        return replace(visual, shown=tuple(_members(shown, size)))

    def _encode_passed(self, group: Sequence[FrameLike], progress: ProgressHook) -> np.ndarray:
        """Return the average of a group, see `pool_group`, which takes the place of its frames."""
        keys = [self._key(frame, is_alone=False) for frame in group]
        known = self.cache.get(group_key(keys))
        if known is not None:
            self.num_found += len(set(keys))
            return known.visual_BGD
        visual_FGD = np.concatenate([each.visual_BGD for each in self._encode_each(group, progress)])
        pooled = EncodedFrame(View((), "clip"), pool_group(self._spec, visual_FGD))
        self.cache.put(group_key(keys), pooled)
        for key in keys:
            self.cache.let_go(key)
        return pooled.visual_BGD

    def _encode_each(self, group: Sequence[FrameLike], progress: ProgressHook) -> list[EncodedFrame]:
        """Return the frames of a group, which may repeat some; the cache may keep none."""
        distinct = {self._key(frame, is_alone=False): frame for frame in group}
        encoded = {key: self.encode(frame, progress, is_alone=False) for key, frame in distinct.items()}
        return [encoded[self._key(frame, is_alone=False)] for frame in group]

    def _check_room(self, num_frames: int, tokens: Sequence[np.ndarray]) -> None:
        """Note where the next question about the same frames would find none of them."""
        num_bytes = sum(each.nbytes + ENTRY_BYTES for each in {id(each): each for each in tokens}.values())
        if 0 < self._max_bytes < num_bytes:
            self.remark = (
                f"a question about {num_frames} frames needs {num_bytes} bytes of visual tokens, more than "
                f"frame_cache_bytes = {self._max_bytes}, so each question encodes them anew; raise it to that, lower "
                "num_frames, or take sampling anchored where the model averages frames"
            )

    def _key(self, frame: FrameLike, *, is_alone: bool) -> FrameKey:
        # Alone it is cut into tiles, but not by every model.
        return FrameKey(frame.camera, frame.stamp_ns, frame.digest, is_alone and self._spec.image_mode != "resize")

    def encode(self, frame: FrameLike, progress: ProgressHook, *, is_alone: bool) -> EncodedFrame:
        """Return the visual tokens of a frame, alone in its prompt or among others."""
        key = self._key(frame, is_alone=is_alone)
        found = self.cache.get(key)
        if found is not None:
            self.num_found += 1
            return found
        small = _thumbnail(frame) if self._threshold else None
        encoded = None if small is None else self.cache.find_like(key, small, self._threshold)
        if encoded is not None:
            self.num_shared += 1
        else:
            encoded = self._encode_new(frame, small, progress, key.is_alone)
        self.cache.put(key, encoded)
        return encoded

    def _encode_new(
        self, frame: FrameLike, small: np.ndarray | None, progress: ProgressHook, is_alone: bool
    ) -> EncodedFrame:
        """Encode a frame, or what is new in it, and count it."""
        num_encoded, num_shared = self.tiles.num_encoded, self.tiles.num_shared
        encoded = self._encode(frame, progress, is_alone)
        is_new = not is_alone or self.tiles.num_encoded > num_encoded
        self.num_encoded += is_new
        self.num_shared += not is_new
        self._on_encoded(encoded.visual_BGD)
        # Of what shows other pixels in part no frame takes tokens: it would be twice as far from what was encoded.
        return replace(encoded, thumbnail=small if self.tiles.num_shared == num_shared else None)

    @property
    def num_bytes(self) -> int:
        """Bytes held of frames and tiles."""
        return self.cache.num_bytes + self.tiles.num_bytes

    def _encode(self, frame: FrameLike, progress: ProgressHook, is_alone: bool) -> EncodedFrame:
        progress.check()
        view = view_image(self._spec, frame.image) if is_alone else view_images(self._spec, [frame.image])
        if is_alone:
            made = self._encode_changed(frame.camera, view, progress)
        else:
            made = np.concatenate(list(self._encode_tiles(view, view.tiles, progress)))
        if view.mode == "scaled":
            merged_BPE = merge_features(self._spec, view, made)
            blocks = _batches(merged_BPE, self._engine.batch_tiles, progress.check)
            made = np.concatenate([self._engine.project(block) for block in blocks])
        progress.mark(Stage.VISION)
        return EncodedFrame(replace(view, tiles=()), made)

    def _encode_changed(self, camera: str, view: View, progress: ProgressHook) -> np.ndarray:
        """Return what `_encode_tiles` makes of all tiles of a view, computing what is not known yet.

        What was made stays known where the work is stopped amid it.
        """
        tiles = self.tiles.view(camera, view.tiles)
        distinct = {tile.key: tile for tile in tiles}
        self.tiles.num_found += len(tiles) - len(distinct)
        found = {key: self.tiles.find(tile) for key, tile in distinct.items()}
        made = {key: known for key, known in found.items() if known is not None}
        new = [tile for key, tile in distinct.items() if key not in made]
        unfilled = iter(new)
        for rows in self._encode_tiles(view, [tile.pixels for tile in new], progress):
            for row, tile in zip(rows, unfilled, strict=False):
                made[tile.key] = row
                self.tiles.put(tile, row)
            self.cache.limit(self._max_bytes - self.tiles.num_bytes)
        return np.stack([made[tile.key] for tile in tiles])

    def _encode_tiles(self, view: View, tiles: Sequence[np.ndarray], progress: ProgressHook) -> Iterator[np.ndarray]:
        """Yield what becomes of tiles each by itself, in batches.

        Of an image at several scales features (N, P, E), which are merged before they are projected; else visual
        tokens (N, G, D).
        """
        spec, engine = self._spec, self._engine
        tile_NCHW = normalize_tiles(tiles, spec.pixel_dtype) if tiles else np.empty((0, 3, 1, 1), np.float32)
        progress.mark(Stage.PREPROCESS)
        # Few at once: the tower dwarfs the calls, and a cancel waits for one call only.
        for batch in _batches(tile_NCHW, engine.batch_tiles, progress.check):
            feat_NPE = engine.vision(batch)
            yield feat_NPE if view.mode == "scaled" else engine.project(merge_features(spec, view, feat_NPE))

    def _clip_length(self, frames: Sequence[FrameLike]) -> int:
        return clip_length(self._spec, len(frames), len({frame.camera for frame in frames}))


def _members(groups: Sequence[int], size: int) -> list[int]:
    """Return the indices of the frames of groups of `size`."""
    return [size * group + frame for group in groups for frame in range(size)]


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
