"""Writes real video files for tests: any container, codec and times of frames, each frame with its number in it."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

NUM_BITS = 8
MS = Fraction(1, 1000)
WIDTH, HEIGHT = 128, 64


def picture(number: int) -> np.ndarray:
    """Return a picture whose upper half spells a number in dark and bright blocks."""
    pixels = np.full((HEIGHT, WIDTH, 3), (200, 60, 60), np.uint8)
    pixels[HEIGHT // 2 :, number % WIDTH] = 255  # something moves
    side = WIDTH // NUM_BITS
    for bit in range(NUM_BITS):
        pixels[: HEIGHT // 2, bit * side : (bit + 1) * side] = 230 if number >> bit & 1 else 20
    return pixels


def number_of(image: np.ndarray) -> int:
    """Return the number that a picture spells."""
    side = image.shape[1] // NUM_BITS
    return sum(int(image[image.shape[0] // 4, bit * side + side // 2].mean() > 128) << bit for bit in range(NUM_BITS))


def write_video(
    path: Path,
    times_ms: Sequence[int],
    codec: str = "libx264",
    *,
    key_every: int = 10,
    options: dict[str, str] | None = None,
    format_options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
) -> Path:
    """Write a video whose frame number k is shown at a time."""
    with av.open(str(path), "w", options=format_options or {}) as container:
        stream = container.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, pix_fmt
        stream.time_base = stream.codec_context.time_base = MS
        stream.options = {"g": str(key_every), **(options or {})}
        for number, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = time_ms, MS
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def even_times(num_frames: int, period_ms: int = 40) -> list[int]:
    return [k * period_ms for k in range(num_frames)]
