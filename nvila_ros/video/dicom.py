"""DICOM pictures as frames: values of an instrument, through the steps of the standard, to RGB.

    stored values -> modality (rescale or LUT) -> window or VOI LUT -> inverted where low is white -> square pixels

In: a file, or its bytes. Out: (H, W, 3) uint8 RGB. A file of several frames is a clip with its
own times. Size is checked before anything is
decoded. No name, number or date of a patient is read, and none is part of an error. This is no medical device.

pydicom reads and decodes; it is optional, the extra `dicom`. Source: DICOM PS3.3, C.7.6, C.8 and C.11.
"""

from __future__ import annotations

import io
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nvila_ros.errors import FrameError
from nvila_ros.types import NS_PER_S
from nvila_ros.video.picture_headers import check_pixels
from nvila_ros.video.windowing import AUTO, FILE, FUNCTIONS, Window, find_span, show_values, span

MAX_FRAMES, MAX_STRETCH = 1 << 16, 16.0
META_BYTES = 4096
"""Within which a file names its transfer syntax."""
PRESETS = "50/400 (abdomen), 40/80 (brain), -600/1500 (lung), 400/1800 (bone), or auto"
DEFLATED = "1.2.840.10008.1.2.1.99"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
_OF_FRAME = ("PixelValueTransformationSequence", "FrameVOILUTSequence", "PixelMeasuresSequence")
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")


class DicomFile:
    """A DICOM file: one picture, or a clip of its frames, each of which is decoded when it is read.

    Args:
        source: the file, or the bytes of one.
        name: for errors and frames.
        window: which values are shown; `FILE` takes the file's own.
        fps: of a file whose frames have no times of their own.
        is_published: refuse a picture that says that names are burned into it.

    Attributes:
        num_frames: at least 1.
        stamps_ns: (F,) int64, when each frame is shown, from the first.
        is_clip: whether it has several frames.

    Raises:
        FrameError: it is damaged, too large, no picture, or of a kind that is not read.
    """

    def __init__(
        self, source: Path | bytes, name: str, window: Window, *, fps: float = 30.0, is_published: bool = False
    ) -> None:
        self.name, self._source, self._window = name, source, window
        with _naming(name):
            self._header = header = read_dicom_header(source, name)
            if is_published and str(header.get("BurnedInAnnotation", "")).upper() == "YES":
                raise FrameError(f"{name} says that names are burned into it (BurnedInAnnotation); crop them first")
            self.height, self.width = int(header.Rows), int(header.Columns)
            self.num_frames = _count(header, name)
            self.is_clip = self.num_frames > 1
            self.stamps_ns = _stamps_ns(header, self.num_frames, fps)
        self._auto: Window | None = None

    @property
    def fps(self) -> float:
        """Mean frames a second."""
        span_ns = int(self.stamps_ns[-1])
        return (self.num_frames - 1) * 1e9 / span_ns if span_ns else 1.0

    def read(self, index: int) -> np.ndarray:
        """Return frame `index`, (H, W, 3) uint8 RGB, of square pixels.

        Raises:
            FrameError: there is no such frame, it cannot be decoded, or no window is known for it.
        """
        if not 0 <= index < self.num_frames:
            raise FrameError(f"frame index must lie in [0, {self.num_frames - 1}] of {self.name}, got {index}")
        with _naming(self.name):
            header, stored = _frame_header(self._header, index), self._decode(index)
            if header.PhotometricInterpretation in _MONOCHROME:
                rgb = np.repeat(self._show(header, stored)[..., None], 3, axis=2)
            else:
                rgb = _to_colour(stored, header)
            return _square(rgb, header, self.name)

    def close(self) -> None:
        """Do nothing: the file is open for one read only."""

    def values(self, index: int) -> np.ndarray:
        """Return a monochrome frame in the units of its instrument, such as HU: (H, W).

        Raises:
            FrameError: it cannot be decoded.
        """
        with _naming(self.name):
            return _to_units(self._decode(index), _frame_header(self._header, index))

    def _show(self, header: Any, stored: np.ndarray) -> np.ndarray:
        values, is_hidden = _to_units(stored, header), _padding(stored, header)
        window = self._choose(header, values[~is_hidden])
        shown = _apply_lut(values, header) if window is None else show_values(values, window)
        shown[is_hidden] = 0
        is_inverted = (
            header.PhotometricInterpretation == "MONOCHROME1" or header.get("PresentationLUTShape") == "INVERSE"
        )
        if is_inverted:
            shown[~is_hidden] = 255 - shown[~is_hidden]
        return shown

    def _choose(self, header: Any, values: np.ndarray) -> Window | None:
        """Return the window of a frame; None where the file has a table in place of one.

        Raises:
            FrameError: a CT has none of its own and none was named.
        """
        if self._window.kind not in (AUTO, FILE):
            return self._window
        if self._window.kind == FILE:
            if header.get("VOILUTSequence"):
                return None
            if own := _own_window(header):
                return own
            if header.get("Modality") == "CT":
                raise FrameError(f"{self.name} is a CT without a window of its own; name one: {PRESETS}")
            if header.BitsStored <= 8 and not header.get("RescaleSlope"):
                return span(0, 2**header.BitsStored - 1)
        # Of the first frame that is looked at, and kept: a clip must not flicker.
        self._auto = self._auto or find_span(values)
        return self._auto

    def _decode(self, index: int) -> np.ndarray:
        """Return the stored values of a frame: (H, W), or (H, W, 3) where YBR is RGB already."""
        from pydicom.pixels import pixel_array

        _check_syntax(self._header, self.name)
        source = io.BytesIO(self._source) if isinstance(self._source, bytes) else self._source
        try:
            frames = np.asarray(pixel_array(source, index=index))
        except Exception as error:  # of damaged bytes decoders raise nearly anything
            detail = " ".join(str(error).split())
            raise FrameError(f"the pixels of {self.name} are damaged or cut off: {detail:.160}") from error
        if frames.shape[:2] != (self.height, self.width):
            raise FrameError(f"{self.name} says {self.width}x{self.height} px and has {frames.shape}; it is damaged")
        return frames


def decode_dicom(content: bytes, window: Window, *, is_published: bool = False) -> np.ndarray:
    """Decode the bytes of a DICOM file of one frame, (H, W, 3) uint8 RGB.

    Raises:
        FrameError: as `DicomFile`, or it has several frames.
    """
    file = DicomFile(content, "a DICOM picture", window, is_published=is_published)
    if file.is_clip:
        raise FrameError(f"a DICOM picture must have one frame, got {file.num_frames}; give its file as a clip")
    return file.read(0)


def read_dicom_header(source: Path | bytes, name: str, tags: list[str] | None = None) -> Any:
    """Read all elements but the pixels, or the named ones, and check what the pixels will take.

    Raises:
        FrameError: it is damaged, deflated as a whole, or, where all are read, too large or no picture.
    """
    with _naming(name), io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        if DEFLATED.encode() in file.read(META_BYTES):
            raise FrameError(f"{name} is deflated as a whole, which is not read: its size is known only afterwards")
        file.seek(0)
        header = _import().dcmread(file, stop_before_pixels=True, specific_tags=tags)
    if tags is None and not all(
        tag in header for tag in ("Rows", "Columns", "PhotometricInterpretation", "BitsStored")
    ):
        raise FrameError(f"{name} is DICOM and has no picture: Rows, Columns or PhotometricInterpretation are missing")
    if tags is None:
        check_pixels(int(header.Columns), int(header.Rows), name)
    return header


def _import() -> Any:
    import pydicom

    return pydicom


@contextmanager
def _naming(name: str) -> Any:
    """Turn whatever pydicom and its decoders raise into one error; it warns of oddities that change no pixel."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (FrameError, ModuleNotFoundError):
        raise
    except Exception as error:  # of damaged bytes they raise nearly anything
        raise FrameError(
            f"{name} is damaged, or of a kind of DICOM that is not read: {type(error).__name__}"
        ) from error


def _count(header: Any, name: str) -> int:
    text = str(header.get("NumberOfFrames") or 1)
    if not text.isdigit() or not 1 <= int(text) <= MAX_FRAMES:
        raise FrameError(f"NumberOfFrames of {name} must lie in [1, {MAX_FRAMES}], got {text[:20]!r}")
    return int(text)


def _stamps_ns(header: Any, num_frames: int, fps: float) -> np.ndarray:
    """Return the file's own times: steps of its own, one step, or a rate; else those of `fps`."""
    steps_ms = read_floats(header, "FrameTimeVector", num_frames)
    if steps_ms is not None:
        return np.asarray(np.cumsum([0, *steps_ms[1:]]) * 1e6, np.int64)
    step_ms = read_floats(header, "FrameTime", 1)
    rate = read_floats(header, "CineRate", 1) or read_floats(header, "RecommendedDisplayFrameRate", 1)
    step_s = step_ms[0] / 1e3 if step_ms and step_ms[0] > 0 else 1 / rate[0] if rate and rate[0] > 0 else 1 / fps
    return np.round(np.arange(num_frames) * (NS_PER_S * step_s)).astype(np.int64)


def _frame_header(header: Any, index: int) -> Any:
    """Return what holds of a frame: an enhanced file has rescale, window and spacing in groups, shared or its own."""
    groups = [*(header.get("SharedFunctionalGroupsSequence") or [])[:1]]
    groups += (header.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
    if not groups:
        return header
    merged = _import().Dataset()
    merged.update(header)
    for group in groups:
        for name in _OF_FRAME:
            for item in (group.get(name) or [])[:1]:
                merged.update(item)
    return merged


def _check_syntax(header: Any, name: str) -> None:
    """Refuse a transfer syntax that nothing here decodes."""
    from pydicom.pixels import get_decoder

    syntax = header.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    is_twelve_bit = syntax.name.startswith("JPEG Extended") and header.BitsStored > 8
    if decoder is None or not decoder.is_available or is_twelve_bit:
        raise FrameError(
            f"{name} is compressed as {syntax.name}, which nothing here decodes; install a decoder that pydicom knows "
            "(pylibjpeg-openjpeg, pyjpegls, python-gdcm), or convert it: gdcmconv --raw"
        )


def _to_colour(pixels: np.ndarray, header: Any) -> np.ndarray:
    """Return (H, W, 3) uint8 RGB of a colour picture; pydicom gave YBR as RGB."""
    bits = int(header.BitsStored)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        pixels, bits = np.asarray(apply_color_lut(pixels, header)), 0
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        raise FrameError(f"colours of kind {header.PhotometricInterpretation} are not read")
    bits = bits or 8 * pixels.dtype.itemsize
    return np.ascontiguousarray((pixels >> max(bits - 8, 0)).astype(np.uint8)[..., :3])


def _to_units(stored: np.ndarray, header: Any) -> np.ndarray:
    """Return stored values in the units of the instrument: by a table, or by slope and intercept."""
    from pydicom.pixels import apply_modality_lut

    values, scaling = np.asarray(apply_modality_lut(stored, header)), header.get("DoseGridScaling")
    return values * float(scaling) if scaling else values


def _own_window(header: Any) -> Window | None:
    """Return the first window of a file, or None."""
    centres, widths = read_floats(header, "WindowCenter"), read_floats(header, "WindowWidth")
    kind = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if not centres or not widths or kind not in FUNCTIONS or widths[0] < (kind == "LINEAR") or widths[0] <= 0:
        return None
    return Window(kind, centres[0], widths[0])


def _apply_lut(values: np.ndarray, header: Any) -> np.ndarray:
    """Return what the file's own table of brightness makes of values."""
    from pydicom.pixels import apply_voi

    bits = int(header.VOILUTSequence[0].LUTDescriptor[2])
    table = np.asarray(apply_voi(values.astype(np.int64), header), np.float64)
    return np.asarray(np.rint((table / (2**bits - 1)).clip(0, 1) * 255), np.uint8)


def _padding(stored: np.ndarray, header: Any) -> np.ndarray:
    """Return where a frame has no value, (H, W) bool."""
    first = header.get("PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, bool)
    last = header.get("PixelPaddingRangeLimit", first)
    low, high = sorted((int(first), int(last)))
    return (stored >= low) & (stored <= high)


def _square(rgb: np.ndarray, header: Any, name: str) -> np.ndarray:
    """Stretch the side whose pixels are larger, so that a circle is one."""
    sides = next((found for tag in _SPACINGS if (found := read_floats(header, tag, 2))), None)
    if sides is None or min(sides) <= 0 or abs(sides[0] / sides[1] - 1) < 1e-3:
        return rgb
    if not 1 / MAX_STRETCH <= sides[0] / sides[1] <= MAX_STRETCH:
        raise FrameError(f"pixels of {name} must be at most {MAX_STRETCH:g} times as long as wide, got {sides}")
    height, width = rgb.shape[:2]
    height, width = round(height * max(sides[0] / sides[1], 1)), round(width * max(sides[1] / sides[0], 1))
    check_pixels(width, height, name)
    return np.asarray(cv2.resize(rgb, (width, height), interpolation=cv2.INTER_LINEAR))


def read_floats(header: Any, tag: str, count: int = 0) -> list[float] | None:
    """Return the numbers of an element, or None where they are missing, no numbers, or not `count`."""
    value = header.get(tag)
    values = [value] if isinstance(value, int | float | str) else value
    try:
        numbers = [float(each) for each in values or []]
    except (TypeError, ValueError):
        return None
    return numbers if numbers and count in (0, len(numbers)) and np.isfinite(numbers).all() else None
