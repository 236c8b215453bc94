"""A folder of DICOM slices as a clip: sorted by where they lie, not by name or number.

Source: DICOM PS3.3, C.7.6.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nvila_ros.errors import FrameError
from nvila_ros.types import NS_PER_S
from nvila_ros.video.dicom import DicomFile, read_dicom_header, read_floats
from nvila_ros.video.picture_headers import sniff_file
from nvila_ros.video.windowing import AUTO, Window, find_span

MAX_SLICES = 10_000
SLICE_TAGS = [
    "SeriesInstanceUID",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "InstanceNumber",
    "Rows",
    "Columns",
]


class DicomSeries:
    """The slices of one series in a folder, in the order in which they lie, as the frames of a clip.

    Args:
        folder: only files that are DICOM are looked at.
        window: as of `DicomFile`.
        fps: slices a second that the series stands for.

    Raises:
        FrameError: there are slices of several series, orientations or sizes, or too many.
    """

    is_clip = True

    def __init__(self, folder: Path, window: Window, fps: float) -> None:
        self.name, self.fps = str(folder), fps
        paths = find_slices(folder)
        if len(paths) > MAX_SLICES:
            raise FrameError(f"{folder} must have at most {MAX_SLICES:,} slices, got {len(paths):,}")
        self.paths = sort_slices(paths, str(folder))
        self.num_frames = len(self.paths)
        self.stamps_ns = np.round(np.arange(self.num_frames) * (NS_PER_S / fps)).astype(np.int64)
        self._window = window

    def read(self, index: int) -> np.ndarray:
        """Return slice `index`, (H, W, 3) uint8 RGB.

        Raises:
            FrameError: as `DicomFile`.
        """
        if not 0 <= index < self.num_frames:
            raise FrameError(f"frame index must lie in [0, {self.num_frames - 1}] of {self.name}, got {index}")
        path = self.paths[index]
        file = DicomFile(path, str(path), self._window)
        if self._window.kind == AUTO:  # one window for all: a clip must not flicker
            middle = self.paths[self.num_frames // 2]
            self._window = find_span(DicomFile(middle, str(middle), self._window).values(0))
            file = DicomFile(path, str(path), self._window)
        return file.read(0)

    def close(self) -> None:
        """Do nothing: each file is open for one read only."""


def find_slices(folder: Path) -> list[Path]:
    """Return the DICOM files of a folder, by name."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [path for path in files if sniff_file(path) == "dicom"]


def sort_slices(paths: Sequence[Path], name: str) -> list[Path]:
    """Return slices in the order of their positions along the normal of their planes; by number where there are none.

    Raises:
        FrameError: they are of several series, orientations or sizes.
    """
    headers = [read_dicom_header(path, str(path), SLICE_TAGS) for path in paths]
    for what, tag in (("series", "SeriesInstanceUID"), ("sizes", "Rows"), ("sizes", "Columns")):
        if len({str(header.get(tag)) for header in headers}) > 1:
            raise FrameError(f"{name} has slices of several {what}; give a folder of one")
    axes = [found for header in headers if (found := read_floats(header, "ImageOrientationPatient", 6))]
    places = [found for header in headers if (found := read_floats(header, "ImagePositionPatient", 3))]
    if not len(axes) == len(places) == len(headers):
        numbers = [int(header.get("InstanceNumber") or 0) for header in headers]
        return [path for _, path in sorted(zip(numbers, paths, strict=True))]
    if not all(np.allclose(axis, axes[0], atol=1e-3) for axis in axes):
        raise FrameError(f"{name} has slices of several orientations, such as a localizer; give a folder of one")
    normal = np.cross(axes[0][:3], axes[0][3:])
    heights = [float(np.dot(normal, place)) for place in places]
    return [path for _, path in sorted(zip(heights, paths, strict=True))]
