"""A picture of what was found: probability over time, and a frame of each event above it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from nvila_ros.tools.find.search import SearchFindings
from nvila_ros.types import Frame

WIDTH, BAR_HEIGHT, FRAME_HEIGHT, MARGIN = 1200, 120, 160, 8
PAPER, INK, FOUND = (255, 255, 255), (90, 110, 140), (200, 70, 50)


def draw_strip(found: SearchFindings, frames: Sequence[Frame]) -> Image.Image:
    """Return the picture.

    Args:
        found: with at least one window.
        frames: one of each event that has room, in order.
    """
    height = BAR_HEIGHT + 3 * MARGIN + (FRAME_HEIGHT if frames else 0)
    picture = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(picture)
    first, last = found.windows[0].start_ns, max(found.windows[-1].end_ns, found.windows[0].start_ns + 1)

    def column(stamp_ns: int) -> int:
        return MARGIN + round((stamp_ns - first) / (last - first) * (WIDTH - 2 * MARGIN))

    floor = height - 2 * MARGIN
    ends = [*(window.start_ns for window in found.windows[1:]), last]
    for window, end_ns in zip(found.windows, ends, strict=True):
        top = floor - round(window.probability * BAR_HEIGHT)
        pen.rectangle((column(window.start_ns), top, max(column(end_ns) - 1, column(window.start_ns)), floor), fill=INK)
    for event in found.events:
        pen.rectangle(
            (column(event.start_ns), floor + 2, max(column(event.end_ns), column(event.start_ns) + 2), height - 4),
            fill=FOUND,
        )
    left = MARGIN
    for frame in frames:
        shown = Image.fromarray(np.asarray(frame.image))
        shown = shown.resize((max(round(FRAME_HEIGHT * shown.width / shown.height), 1), FRAME_HEIGHT))
        at = max(left, column(frame.stamp_ns) - shown.width // 2)
        if at + shown.width <= WIDTH - MARGIN:
            picture.paste(shown, (at, MARGIN))
            pen.line((column(frame.stamp_ns), MARGIN + FRAME_HEIGHT, column(frame.stamp_ns), floor), fill=FOUND)
            left = at + shown.width + MARGIN
    return picture
