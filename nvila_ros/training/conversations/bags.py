"""Frames of a ROS 2 bag as a medium of a sample: which bag, which camera, which moment or window.

    {"bag": "drive.mcap", "topic": "/front/image_raw", "start_s": 3, "end_s": 5, "num_frames": 8,
     "question": "Which way does the red car turn?", "answer": "left"}

`bag` is a path as those of images are; `topic` may be left out where but one carries images. Which frames:

    start_s, end_s    a window, in seconds from the topic's first frame; by default from the first to the last
    time_s            the one frame nearest to that time, likewise
    stamps_ns         frames by their captures, `header.stamp` in nanoseconds, as answers of the node give theirs

A window is sampled as the node samples one. It is a video, shown where `<video>` stands; one frame is an image.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.errors import FrameError, NoFramesError, QueryError
from nvila_ros.video.bags import index_topic, read_frames
from nvila_ros.video.sampling import sample_indices
from nvila_ros.video.windowing import OWN, Window

PLACES = ("start_s", "end_s", "time_s", "stamps_ns")
"""Fields of a record that select frames of a bag."""

_LATEST_NS = 2**63 - 1


@dataclass(frozen=True, slots=True)
class BagMedium:
    """One moment or window of a camera in a bag.

    Attributes:
        path: of the bag.
        topic: empty for the only one that carries images.
        start_s: start of the window, from the first frame.
        end_s: its end, likewise; None is the last frame.
        time_s: of a single frame, likewise; None for a window.
        stamps_ns: captures of the frames, ascending; empty for a window.
        num_frames: most frames shown; 0 leaves it to the model.
        window: which values of more than eight bits are shown.
    """

    path: Path
    topic: str = ""
    start_s: float = 0.0
    end_s: float | None = None
    time_s: float | None = None
    stamps_ns: tuple[int, ...] = field(default=(), repr=False)
    num_frames: int = 0
    window: Window = OWN

    @property
    def kind(self) -> str:
        """How it is shown: as an image or a video."""
        return "image" if self.time_s is not None or len(self.stamps_ns) == 1 or self.num_frames == 1 else "video"

    @property
    def name(self) -> str:
        """Path of the bag, and topic."""
        return f"{self.path} {self.topic}".rstrip()

    def read(self, num_frames: int) -> list[np.ndarray]:
        """Return its frames, (H, W, 3) uint8 RGB each.

        Raises:
            FileNotFoundError: there is no bag.
            FrameError: the bag or a frame cannot be read, or nothing lies in the window.
        """
        index = index_topic(self.path, self.topic)
        most = min(num_frames, self.num_frames or num_frames)
        try:
            if self.stamps_ns:
                found = index.at(self.stamps_ns)
                chosen = [found[k] for k in sample_indices(self.stamps_ns, most)]
            elif self.time_s is not None:
                chosen = [index.nearest(self.time_s)]
            else:
                chosen = index.between(self.start_s, self.end_s, most)
        except NoFramesError as error:
            raise FrameError(f"{self.name}: {error}") from error
        return [frame.image for frame in read_frames(self.path, self.topic, chosen, self.window)]


def parse_bag(record: Mapping[str, Any], folder: Path, window: Window = OWN) -> BagMedium:
    """Return the medium of a record's `bag` and the fields beside it; nothing is opened.

    Raises:
        QueryError: a field breaks its rule, or frames are selected in several ways.
    """
    bag, topic = record.get("bag"), record.get("topic", "")
    if not isinstance(bag, str) or not bag or not isinstance(topic, str):
        raise QueryError(f"bag must be a path and topic a name, got {bag!r:.80} and {topic!r:.80}")
    ways = [name for name in ("time_s", "stamps_ns") if name in record]
    ways += ["start_s and end_s"] if "start_s" in record or "end_s" in record else []
    if len(ways) > 1:
        raise QueryError(f"frames of the bag must be selected in one way, got {', '.join(ways)}")
    start_s, end_s = _seconds(record, "start_s", 0.0), _seconds(record, "end_s", None)
    if end_s is not None and start_s is not None and end_s < start_s:
        raise QueryError(f"end_s must not lie before start_s, got {end_s:g} and {start_s:g}")
    return BagMedium(
        path=folder / bag,
        topic=topic,
        start_s=start_s or 0.0,
        end_s=end_s,
        time_s=_seconds(record, "time_s", None),
        stamps_ns=_stamps(record),
        num_frames=_count(record),
        window=window,
    )


def _seconds(record: Mapping[str, Any], name: str, default: float | None) -> float | None:
    value = record.get(name, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= sys.float_info.max:
        raise QueryError(f"{name} must be seconds >= 0, got {value!r:.80}")
    return float(value)


def _stamps(record: Mapping[str, Any]) -> tuple[int, ...]:
    found = record.get("stamps_ns", ())
    if "stamps_ns" in record and (
        not isinstance(found, list)
        or not found
        or any(type(each) is not int or abs(each) > _LATEST_NS for each in found)
    ):
        raise QueryError(f"stamps_ns must list whole nanoseconds of 64 bits, got {found!r:.80}")
    if any(later <= earlier for earlier, later in itertools.pairwise(found)):
        raise QueryError(f"stamps_ns must ascend, got {found!r:.80}")
    return tuple(found)


def _count(record: Mapping[str, Any]) -> int:
    value = record.get("num_frames", 0)
    if type(value) is not int or value < 0 or ("num_frames" in record and not value):
        raise QueryError(f"num_frames must be a whole number >= 1, got {value!r:.80}")
    return value
