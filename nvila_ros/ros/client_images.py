"""Pictures of a client's question as messages: files as they are, pixels as PNG, which loses nothing."""

from __future__ import annotations

import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage

from nvila_ros.errors import FrameError, QueryError, shown
from nvila_ros.ros.messages import stamp_from_ns
from nvila_ros.serving.request_images import MAX_IMAGES
from nvila_ros.types import Frame
from nvila_ros.video.picture_headers import sniff
from nvila_ros.video.pictures import read_file


def image_messages(images: Sequence[Any]) -> list[CompressedImage]:
    """Return pictures as messages.

    Args:
        images: see `QueryFields`.

    Raises:
        QueryError: there are too many, one cannot be read, or is of another type.
    """
    if len(images) > MAX_IMAGES:
        raise QueryError(f"images must be at most {MAX_IMAGES}, got {len(images)}")
    return [_message(place, image) for place, image in enumerate(images)]


def _message(place: int, image: Any) -> CompressedImage:
    if isinstance(image, CompressedImage):
        return image
    if isinstance(image, str | Path):
        try:
            return _file_message(read_file(Path(image)))
        except FrameError as error:
            raise QueryError(f"images[{place}]: {error}") from error
    if isinstance(image, bytes | bytearray | memoryview):
        return _file_message(bytes(image))
    frame = image if isinstance(image, Frame) else Frame(image=np.asarray(image), stamp_ns=0)
    pixels = frame.image
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        what = f"{pixels.shape} of {pixels.dtype}" if pixels.ndim else shown(image)
        raise QueryError(
            f"images[{place}] must be a file by path or content, an image (H, W, 3) of uint8 in RGB, a Frame or a "
            f"CompressedImage, got {what}"
        )
    _, content = cv2.imencode(".png", pixels[..., ::-1])
    message = _file_message(content.tobytes())
    if frame is image:  # a stamp of 0 would mean that there is none, and a file's first frame has it
        message.header.stamp, message.header.frame_id = stamp_from_ns(max(frame.stamp_ns, 1)), frame.frame_id
    return message


def _file_message(content: bytes) -> CompressedImage:
    return CompressedImage(format=sniff(content), data=array.array("B", content))
