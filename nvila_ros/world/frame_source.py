"""What a demo camera sees at a capture stamp: the synthetic world, or a video file in a loop.

In: a stamp in ns. Out: the frame ``(H, W, 3)`` uint8 RGB, and for the world what is to be seen in it. The rule, by
which any process can recompute both from a stamp alone: world time is stamp - epoch; a video shows the frame whose time
in the file came last, and a round lasts until one mean gap after its last frame. The epoch is 0 unless the camera's
parameter says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from nvila_ros.errors import ConfigError, FrameError
from nvila_ros.types import NS_PER_S
from nvila_ros.video.video_file import VideoFile
from nvila_ros.world.live_world import LiveWorld
from nvila_ros.world.rendering import render
from nvila_ros.world.scene import Scene

FILM_S = 8.0
"""Length of a film of the world: one standing and one moving scene."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What is to be seen at a stamp: `scene_id` is another one each time that a scene is shown."""

    scene_id: tuple[int, int]
    scene: Scene
    t_s: float


class FrameSource(Protocol):
    """What a camera can publish."""

    def frame_at(self, stamp_ns: int) -> np.ndarray:
        """Return what the camera sees at a stamp, (H, W, 3) uint8 RGB."""
        ...


class WorldSource:
    """The endless synthetic world.

    Raises:
        ConfigError: a size that no scene is drawn for.
    """

    def __init__(self, seed: int, width: int, height: int, *, epoch_ns: int = 0) -> None:
        if not 0.5 <= width / height <= 3:
            raise ConfigError(f"width / height of the world must lie in [0.5, 3], got {width} / {height}")
        self._world = LiveWorld(seed, aspect=width / height)
        self._width, self._height, self._epoch_ns = width, height, epoch_ns

    def moment_at(self, stamp_ns: int) -> Moment:
        """Return the scene shown at a stamp."""
        return _moment(self._world, _since(stamp_ns, self._epoch_ns) / NS_PER_S)

    def frame_at(self, stamp_ns: int) -> np.ndarray:
        """Return what the camera sees at a stamp, (H, W, 3) uint8 RGB."""
        moment = self.moment_at(stamp_ns)
        return render(moment.scene, moment.t_s, self._width, self._height)


class VideoSource:
    """A video file in an endless loop, true to time: a frame that comes late is skipped."""

    def __init__(self, path: Path, *, epoch_ns: int = 0) -> None:
        self._video, self._epoch_ns = VideoFile(path), epoch_ns
        self.fps = self._video.fps
        self._round_ns = round(self._video.num_frames * NS_PER_S / self.fps)

    def index_at(self, stamp_ns: int) -> tuple[int, int]:
        """Return which round of the loop and which frame of the file is shown at a stamp."""
        num_round, since_ns = divmod(_since(stamp_ns, self._epoch_ns), self._round_ns)
        return num_round, int(np.searchsorted(self._video.stamps_ns, since_ns, side="right")) - 1

    def frame_at(self, stamp_ns: int) -> np.ndarray:
        """Return what the camera sees at a stamp, (H, W, 3) uint8 RGB."""
        return self._video.read(self.index_at(stamp_ns)[1])


class FilmSource(VideoSource):
    """A video file that `film_world` made, so that what is to be seen is known."""

    def __init__(self, path: Path, seed: int, *, aspect: float, epoch_ns: int = 0) -> None:
        super().__init__(path, epoch_ns=epoch_ns)
        self._world = LiveWorld(seed, aspect=aspect)

    def moment_at(self, stamp_ns: int) -> Moment:
        """Return the scene shown at a stamp."""
        num_round, index = self.index_at(stamp_ns)
        moment = _moment(self._world, int(self._video.stamps_ns[index]) / NS_PER_S)
        return Moment((num_round, moment.scene_id[1]), moment.scene, moment.t_s)


def film_world(path: Path, seed: int, width: int, height: int, *, fps: int = 30) -> None:
    """Write the first `FILM_S` seconds of a world as a video file.

    Raises:
        FrameError: OpenCV cannot write such a file here.
    """
    world = LiveWorld(seed, aspect=width / height)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    if not writer.isOpened():
        raise FrameError(f"OpenCV cannot write {path}; it needs a writable folder and the mp4v encoder")
    for index in range(round(FILM_S * fps)):
        moment = _moment(world, index / fps)
        writer.write(cv2.cvtColor(render(moment.scene, moment.t_s, width, height), cv2.COLOR_RGB2BGR))
    writer.release()


def _since(stamp_ns: int, epoch_ns: int) -> int:
    if stamp_ns < epoch_ns:
        raise ConfigError(f"the epoch must not lie after the clock, got {epoch_ns} ns and now {stamp_ns} ns")
    return stamp_ns - epoch_ns


def _moment(world: LiveWorld, t_s: float) -> Moment:
    index, scene, within_s = world.scene_at(t_s)
    return Moment((0, index), scene, within_s)
