"""The pictures of a request: files that it carries, or the robot's own frames that it names; nothing is ever fetched.

    data:image/jpeg;base64,...                       a picture: jpeg, png, webp and whatever else `pictures` reads
    data:video/mp4;base64,...                        a video (in `video_url`), of which a few frames are shown
    nvila:latest?frames=8&window_s=2                 the newest frames of all cameras
    nvila:camera/front?ago_start_s=10&ago_end_s=5    of one camera; `start_ns` and `end_ns` name a window too
    nvila:frame/front/1733000000123456789            the frame of a stamp

Any other address is refused, those of files and of the web by name.
"""

from __future__ import annotations

import base64
import binascii
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import numpy as np

from nvila_ros.errors import FrameError, NvilaError
from nvila_ros.http import fields
from nvila_ros.http.errors import ApiError
from nvila_ros.serving.request_images import MAX_IMAGES, MAX_TOTAL_PIXELS
from nvila_ros.types import EncodedImage, Frame, RawFrame
from nvila_ros.video.buffer import FrameBuffer
from nvila_ros.video.compressed import read_header
from nvila_ros.video.media import read_clip
from nvila_ros.video.video_file import VideoFile

SCHEME = "nvila:"
VIDEO_FRAMES = 8
MAX_VIDEO_FRAMES = 9000
"""Of a video, five minutes at 30 Hz: one without key frames is decoded from its first frame on."""
_WINDOW_KEYS = {
    "frames": int,
    "window_s": float,
    "ago_start_s": float,
    "ago_end_s": float,
    "start_ns": int,
    "end_ns": int,
    "sampling": str,
    "cameras": str,
}
_NAMES = {"frames": "num_frames"}


@dataclass(slots=True)
class ShownMedia:
    """What the parts of one message show.

    Attributes:
        images: pictures that it carries, and frames of the buffer that it names by their stamps.
        window: fields of a query about the robot's own frames; None where it names none.
    """

    images: list[RawFrame] = field(default_factory=list)
    window: dict[str, Any] | None = None


class MediaReader:
    """Reads the parts of one request, and counts what they cost together.

    Args:
        buffer: the robot's frames.

    Attributes:
        num_images: so far.
        has_stamps: whether all of them say when they were captured.
    """

    def __init__(self, buffer: FrameBuffer[RawFrame]) -> None:
        self._buffer = buffer
        self.num_images = self._num_pixels = 0
        self.has_stamps = True

    def read(self, part: Mapping[str, Any], param: str) -> ShownMedia:
        """Return what an `image_url` or `video_url` part shows.

        Raises:
            ApiError: its address is of another kind, or what it carries is no such file, or too much.
        """
        kind = str(part["type"])
        url = part.get(kind)
        given = url if isinstance(url, dict) else {"url": url}
        address = given.get("url")
        if not isinstance(address, str) or not address:
            raise fields.invalid(f"{param}.{kind}.url", "a data URI or an address of nvila:", address)
        try:
            if address[: len(SCHEME)].lower() == SCHEME:
                return self._own(address[len(SCHEME) :])
            content = _data(address)
            if kind == "video_url":
                return self._video(content, fields.integer(given, "frames", 1, MAX_IMAGES) or VIDEO_FRAMES)
            return self._picture(content, fields.mapping(part, "nvila"))
        except NvilaError as error:
            raise ApiError(400, f"{param}: {error}", param=param, code="invalid_media") from error

    def in_order(self, images: Sequence[RawFrame]) -> tuple[RawFrame, ...]:
        """Return pictures in capture order where that is known, else as they were given, their places as stamps."""
        if self.has_stamps:
            return tuple(sorted(images, key=lambda image: image.stamp_ns))
        return tuple(replace(image, stamp_ns=place) for place, image in enumerate(images))

    def _picture(self, content: bytes, about: Mapping[str, Any]) -> ShownMedia:
        """Take a picture in; `about` may name its camera, so that several of one camera are shown as a clip."""
        data = np.frombuffer(content, np.uint8)
        header = read_header(data, "")
        self._count(header.width * header.height)
        image = EncodedImage(data=data, format="", width=header.width, height=header.height)
        camera = fields.text(about, "camera") or f"image{self.num_images}"
        stamp_ns = _stamp(about)
        self.has_stamps &= stamp_ns is not None
        place = self.num_images if stamp_ns is None else stamp_ns
        return ShownMedia([RawFrame(image=image, stamp_ns=place, camera=camera)])

    def _video(self, content: bytes, num_frames: int) -> ShownMedia:
        self.has_stamps = False
        camera = f"video{self.num_images + 1}"
        frames = _decode_clip(content, num_frames)
        for frame in frames:
            self._count(frame.image.shape[0] * frame.image.shape[1])
        return ShownMedia([Frame(image=frame.image, stamp_ns=frame.stamp_ns, camera=camera).raw for frame in frames])

    def _own(self, address: str) -> ShownMedia:
        path, _, query = address.partition("?")
        what, _, rest = path.strip("/").partition("/")
        if what == "frame" and not query:
            return self._frame(rest)
        window = _window(query)
        if what == "camera" and rest and "cameras" not in window:
            return ShownMedia(window=window | {"cameras": (unquote(rest),)})
        if what == "latest" and not rest:
            return ShownMedia(window=window)
        raise FrameError(
            f"an address must be nvila:latest, nvila:camera/NAME or nvila:frame/NAME/STAMP_NS, got {address[:80]!r}"
        )

    def _frame(self, rest: str) -> ShownMedia:
        camera, _, stamp = rest.rpartition("/")
        stamp_ns = int(stamp) if re.fullmatch(r"\d{1,19}", stamp, re.ASCII) else -1
        frames = self._buffer.window([unquote(camera)], stamp_ns, stamp_ns)[0]
        if not frames:
            raise ApiError(404, f"the buffer holds no frame {rest[:80]!r} any more", code="no_frames")
        image = frames[0].image
        self._count(image.width * image.height)
        return ShownMedia([frames[0]])

    def _count(self, num_pixels: int) -> None:
        self.num_images += 1
        self._num_pixels += num_pixels
        if self.num_images > MAX_IMAGES:
            raise ApiError(413, f"a request may carry {MAX_IMAGES} pictures, got more", code="too_many_images")
        if self._num_pixels > MAX_TOTAL_PIXELS:
            raise ApiError(
                413,
                f"the pictures of a request may have {MAX_TOTAL_PIXELS} px together, got more",
                code="too_many_pixels",
            )


def _data(address: str) -> bytes:
    """Return the bytes of a data URI; either alphabet of base64, line breaks and missing padding are taken."""
    match = re.match(r"data:([\w.+/-]*)((?:;[\w.+=\"-]*)*),", address[:256], re.ASCII | re.IGNORECASE)
    if match is None or not match[2].lower().endswith(";base64"):
        scheme = urlsplit(address[:32].split(",")[0]).scheme
        raise FrameError(
            f"an address must be a data URI in base64 or of nvila:, got {scheme or address[:16]!r}; nothing is fetched "
            "and no file is opened: send the bytes"
        )
    text = re.sub(r"\s+", "", unquote(address[match.end() :]) if "%" in address else address[match.end() :])
    text = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise FrameError(f"the data URI must be base64, but {error}") from error


def _window(query: str) -> dict[str, Any]:
    """Return the fields of a query that an address names behind its `?`."""
    window: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        kind = _WINDOW_KEYS.get(key)
        if kind is None:
            raise FrameError(f"a key behind ? must be one of {sorted(_WINDOW_KEYS)}, got {key[:40]!r}")
        try:
            window[_NAMES.get(key, key)] = kind(text)
        except ValueError as error:
            raise FrameError(f"{key} must be a number, got {text[:40]!r}") from error
    if "cameras" in window:
        window["cameras"] = tuple(filter(None, window["cameras"].split(",")))
    return window


def _stamp(about: Mapping[str, Any]) -> int | None:
    """Return a stamp, which is written as text, since it is too long for a number of JavaScript."""
    value = about.get("stamp_ns")
    if value is None:
        return None
    if not re.fullmatch(r"\d{1,18}|[1-8]\d{18}", str(value), re.ASCII):
        raise fields.invalid("nvila.stamp_ns", "nanoseconds as text", value)
    return int(value)


def _decode_clip(content: bytes, num_frames: int) -> list[Frame]:
    """Return frames spread evenly over a video; FFmpeg reads it from a file that has no name any more."""
    with tempfile.NamedTemporaryFile(prefix="nvila_", suffix=".video") as file:
        file.write(content)
        file.flush()
        with VideoFile(Path(file.name)) as video:
            if video.num_frames > MAX_VIDEO_FRAMES:
                raise FrameError(f"a video must have at most {MAX_VIDEO_FRAMES} frames, got {video.num_frames}; cut it")
            return read_clip(video, num_frames)
