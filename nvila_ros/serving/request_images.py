"""Pictures that a question brings along, in place of the cameras' frames: of the client's own choice.

None of them is left out or put in order here: a set with one picture that cannot be shown has the question refused. At
admission headers alone are read, microseconds for a JPEG or PNG; what lies behind them is seen when they are decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nvila_ros.errors import FrameError, QueryError
from nvila_ros.types import EncodedImage, Frame, Query, RawFrame
from nvila_ros.video.compressed import read_header
from nvila_ros.video.deferred import DeferredFrame

MAX_IMAGES = 64
"""As in Ask.srv and AskVideo.action."""
MAX_TOTAL_PIXELS = 1 << 26
"""Of all pictures of a question, which are decoded together: 192 MiB of RGB."""


def check_images(query: Query, max_bytes: int) -> None:
    """Check the pictures of a query against the rules, without decoding them.

    Args:
        query: with pictures.
        max_bytes: of all of them together, as files.

    Raises:
        QueryError: there are too many, they have too many bytes or pixels, one is no whole picture, they are not in
            capture order, or the query also names frames of the cameras.
    """
    _check_alone(query)
    images = query.images
    if len(images) > MAX_IMAGES:
        raise QueryError(f"images must be at most {MAX_IMAGES}, got {len(images)}")
    num_bytes = sum(frame.image.data.nbytes for frame in images if isinstance(frame.image, EncodedImage))
    if num_bytes > max_bytes:
        raise QueryError(f"images must have at most max_images_bytes = {max_bytes} bytes together, got {num_bytes}")
    num_pixels = sum(_num_pixels(place, frame) for place, frame in enumerate(images))
    if num_pixels > MAX_TOTAL_PIXELS:
        raise QueryError(
            f"images must have at most {MAX_TOTAL_PIXELS} px together, got {num_pixels}; send smaller ones"
        )
    stamps = [frame.stamp_ns for frame in images]
    for place in range(1, len(stamps)):
        if stamps[place] < stamps[place - 1]:
            raise QueryError(
                f"images must be in capture order, oldest first, got stamps {stamps[place - 1]} and {stamps[place]} ns "
                f"of images[{place - 1}] and images[{place}]; one without a stamp takes the time of the request"
            )


def decode_images(images: Sequence[RawFrame], decode: Callable[[RawFrame], Frame]) -> list[DeferredFrame]:
    """Decode all pictures of a query.

    Raises:
        QueryError: one is damaged; the message names it.
    """
    frames = [DeferredFrame(raw, decode) for raw in images]
    check_whole(frames, "images")
    return frames


def check_whole(frames: Sequence[DeferredFrame], name: str) -> None:
    """Decode pictures that were not, since none of a client's takes the place of another.

    Args:
        frames: the pictures.
        name: of them together.

    Raises:
        QueryError: one is damaged; the message names it.
    """
    for place, frame in enumerate(frames):
        if damage := frame.damage():
            raise QueryError(f"{name}[{place}]: {damage}; send another, or leave it out") from damage


def _check_alone(query: Query) -> None:
    named = {
        "start": query.start_ns,
        "end": query.end_ns,
        "ago_start_s": query.ago_start_s,
        "ago_end_s": query.ago_end_s,
        "window_s": query.window_s,
        "num_frames": query.num_frames,
        "sampling": query.sampling,
        "cameras": query.cameras,
    }
    if both := [name for name, value in named.items() if value]:
        raise QueryError(f"images take the place of the cameras' frames, so leave {', '.join(both)} out, or the images")


def _num_pixels(place: int, frame: RawFrame) -> int:
    image = frame.image
    if not isinstance(image, EncodedImage):  # a frame of a video that was decoded, or of the buffer
        return image.width * image.height
    try:
        header = read_header(image.data, image.format)
    except FrameError as error:
        raise QueryError(f"images[{place}]: {error}") from error
    return header.width * header.height
