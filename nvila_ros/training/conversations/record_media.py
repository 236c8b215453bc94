"""The images and videos that a record names: its keys, where its files may lie, and how they are read.

`image` and `images` name images, `video` and `videos` name videos, each as a path or a list of paths; `bag` names a
ROS 2 bag, see `bags`. A record that has none of these keys but another one that looks like a file, such as
`image_path`, is refused: read as text alone it would be learned and scored without its picture.

Paths are relative to the media folder and stay inside it, links included, unless the data set allows others: a data set
of unknown origin cannot show a model the private files of whoever runs it.

Source: NVLabs/VILA `data/dataset_impl/llava.py`, which reads `image`, `images` and `video`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nvila_ros.errors import FrameError, NoFramesError, QueryError
from nvila_ros.training.conversations.bad_samples import SampleError
from nvila_ros.training.conversations.bags import PLACES, BagMedium, parse_bag
from nvila_ros.video.media import ImageFiles, open_media, read_clip
from nvila_ros.video.windowing import OWN, Window

IMAGE, VIDEO = "image", "video"
KEYS = {IMAGE: ("image", "images"), VIDEO: ("video", "videos")}
"""Keys of a record that name media, by what they are shown as."""


def _with_plurals(*words: str) -> frozenset[str]:
    return frozenset(word + end for word in words for end in ("", "s"))


_MEDIA_WORDS = _with_plurals("image", "img", "picture", "photo", "video", "clip", "audio")
_FILE_WORDS = _with_plurals("path", "file", "filename", "name", "list", "url")


class Medium(Protocol):
    """An image or a video that a turn shows."""

    @property
    def kind(self) -> str:
        """`IMAGE` or `VIDEO`."""

    @property
    def name(self) -> str:
        """Its name in error messages."""

    def read(self, num_frames: int) -> list[np.ndarray]:
        """Return an image, or up to `num_frames` frames spread evenly over a video, (H, W, 3) uint8 RGB each.

        Raises:
            FileNotFoundError: it does not exist.
            FrameError: it cannot be decoded.
        """


@dataclass(frozen=True, slots=True)
class FileMedium:
    """An image or video file, or a folder that holds the frames of a video."""

    kind: str
    path: Path
    window: Window = OWN

    @property
    def name(self) -> str:
        """Its path."""
        return str(self.path)

    def read(self, num_frames: int) -> list[np.ndarray]:
        """Return the image, or frames spread evenly over the video, as `Medium.read`."""
        if not self.path.exists():
            raise FileNotFoundError(self.name)
        if self.kind == IMAGE:
            return [ImageFiles(self.name, [self.path], 1.0, window=self.window).read(0)]
        video = open_media(self.path.absolute(), window=self.window)  # a name may begin with ~
        try:
            return [frame.image for frame in read_clip(video, num_frames)]
        finally:
            video.close()


@dataclass(frozen=True, slots=True)
class MediaFolder:
    """The folder that the paths of a data set are relative to.

    Attributes:
        path: of the folder.
        allow_outside: also read what lies outside of it: absolute paths, `..`, and links that lead out.
        window: which values of more than eight bits are shown.
    """

    path: Path
    allow_outside: bool = False
    window: Window = OWN

    def locate(self, text: str, name: str) -> Path:
        """Return the path that a record names, without opening it.

        Args:
            text: the path in the record.
            name: of the record, for errors.

        Raises:
            SampleError: it lies outside the folder, and that is not allowed.
        """
        path = self.path / text
        if not self.allow_outside:
            self._check(path, text, name)
        return path

    def _check(self, path: Path, text: str, name: str) -> None:
        try:
            inside = Path(os.path.realpath(self.path))
            is_inside = not os.path.isabs(text) and all(_lies_in(each, inside) for each in (path, *_links_in(path)))
        except (OSError, ValueError):
            return  # no file can have this name, or the folder cannot be listed: reading it says so
        if not is_inside:
            rule = f"media must lie in the media folder {self.path}, links included, got {text!r:.200}"
            raise SampleError("outside_media", name, f"{rule}; move them, or trust the data set with --allow-outside")


def _lies_in(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)


def _links_in(path: Path) -> list[Path]:
    """Return the links in a folder of frames or a bag; none in a file."""
    return [each for each in path.iterdir() if each.is_symlink()] if path.is_dir() else []


def read_medium(medium: Medium, num_frames: int, name: str) -> list[np.ndarray]:
    """Return the frames of a sample's medium.

    Raises:
        SampleError: it is missing or cannot be decoded.
    """
    try:
        return medium.read(num_frames)
    except FileNotFoundError as error:
        fix = "check the media folder and the path in the record"
        raise SampleError("missing_media", name, f"no {medium.kind} at {medium.name}; {fix}") from error
    except (FrameError, NoFramesError, OSError, ValueError) as error:  # also a name that no file can have
        raise SampleError("unreadable_media", name, f"{medium.kind} {medium.name:.200}: {error!s:.200}") from error


def media_of(record: Mapping[str, Any], name: str, folder: MediaFolder) -> dict[str, list[Medium]]:
    """Return the images and the videos that a record names, in order.

    Raises:
        SampleError: a key or a path breaks a rule.
    """
    media: dict[str, list[Medium]] = {IMAGE: [], VIDEO: []}
    for kind, keys in KEYS.items():
        for key in keys:
            media[kind] += [
                FileMedium(kind, folder.locate(path, name), folder.window) for path in _paths(record, key, name)
            ]
    bag = _bag(record, name, folder)
    if bag is not None:
        media[bag.kind].append(bag)
    if not any(media.values()):
        _refuse_unread(record, name)
    return media


def _paths(record: Mapping[str, Any], key: str, name: str) -> list[str]:
    found = record.get(key) or []
    paths = [found] if isinstance(found, str) else found
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise SampleError("malformed", name, f"{key} must be a path or a list of paths, got {record[key]!r:.80}")
    return paths


def _bag(record: Mapping[str, Any], name: str, folder: MediaFolder) -> BagMedium | None:
    if "bag" not in record:
        places = [each for each in PLACES if each in record]
        if places:
            raise SampleError("malformed", name, f"{', '.join(places)} goes with a bag, and the record names none")
        return None
    try:
        bag = parse_bag(record, folder.path, folder.window)
    except QueryError as error:
        raise SampleError("malformed", name, str(error)) from error
    folder.locate(record["bag"], name)
    return bag


def _refuse_unread(record: Mapping[str, Any], name: str) -> None:
    """Refuse a record that seems to name media by keys that are not read.

    Raises:
        SampleError: it has such a key.
    """
    unread = [key for key, value in record.items() if value and isinstance(value, (str, list, dict)) and _is_file(key)]
    if unread:
        known = ", ".join(key for keys in KEYS.values() for key in keys)
        text = f"{', '.join(unread)} is not read, and the record names no other media; rename it to one of {known}, bag"
        raise SampleError("malformed", name, text)


def _is_file(key: object) -> bool:
    """Whether a key sounds like a file of media, such as `image_path` or `videoFile`, and not like `image_id`."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", str(key))]
    return bool(_MEDIA_WORDS & set(words)) and words[-1] in _MEDIA_WORDS | _FILE_WORDS
