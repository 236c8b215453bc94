"""DICOM: real files of instruments, shown by the standard's formulas, or refused by name."""

from __future__ import annotations

import copy
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from nvila_ros.errors import FrameError
from nvila_ros.types import EncodedImage
from nvila_ros.video.compressed import decode_compressed, read_header
from nvila_ros.video.dicom import DicomFile, decode_dicom
from nvila_ros.video.dicom_series import DicomSeries
from nvila_ros.video.media import open_media, read_clip
from nvila_ros.video.pictures import decode_picture
from nvila_ros.video.windowing import AUTO, OWN, Window, parse_window

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
# Every file of the package with pixels that is refused, and by which words.
REFUSED = {
    "CT_small.dcm": "is a CT without a window of its own; name one: 50/400 .abdomen.",
    "GDCMJ2K_TextGBR.dcm": "pixels of .* are damaged or cut off",
    "JPEG-lossy.dcm": "compressed as JPEG Extended .Process 2 and 4., which nothing here decodes; install",
    "JPEG2000-embedded-sequence-delimiter.dcm": "pixels of .* are damaged or cut off",
    "JPEGLSNearLossless_08.dcm": "JPEG-LS Lossy",
    "JPEGLSNearLossless_16.dcm": "JPEG-LS Lossy",
    "JPGExtended.dcm": "JPEG Extended",
    "MR_small_jpeg_ls_lossless.dcm": "JPEG-LS Lossless",
    "MR_truncated.dcm": "pixels of .* are damaged or cut off",
    "SC_rgb_jls_lossy_line.dcm": "JPEG-LS Lossy",
    "SC_rgb_jls_lossy_sample.dcm": "JPEG-LS Lossy",
    "SC_rgb_jpeg.dcm": "pixels of .* are damaged or cut off",
    "SC_rgb_jpeg_gdcm.dcm": "JPEG Lossless, Non-Hierarchical",
    "badVR.dcm": "NumberOfFrames of .* got '1A'",
    "image_dfl.dcm": "is deflated as a whole",
}


def has_pixels(path: Path) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(path, force=True)
        return "PixelData" in header and "Rows" in header


PICTURES = sorted(path for path in FILES.glob("*.dcm") if has_pixels(path))
SLICES = sorted(path for path in (FILES / "dicomdirtests").rglob("*") if path.is_file() and path.name.isdigit())


def stored(path: Path, index: int = 0) -> tuple[Any, np.ndarray]:
    """A file's elements and stored values, by pydicom's own way to a whole file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(path)
        pixels = header.pixel_array
    is_many = int(header.get("NumberOfFrames") or 1) > 1
    return header, pixels[index] if is_many else pixels


def shown_by_hand(header: Any, pixels: np.ndarray) -> np.ndarray:
    """Brightness by the formulas of PS3.3, written out one value at a time; (H, W) float."""
    values = pixels * float(header.get("RescaleSlope") or 1) + float(header.get("RescaleIntercept") or 0)
    centre, width = header.get("WindowCenter"), header.get("WindowWidth")
    if centre is None:
        if header.BitsStored <= 8:
            return values * 255 / (2**header.BitsStored - 1)
        low, high = (np.sort(values, None)[int(p / 100 * (values.size - 1))] for p in (0.5, 99.5))
        return ((values - low) / max(high - low, 1)).clip(0, 1) * 255
    c, w = (float(v[0]) if isinstance(v, pydicom.multival.MultiValue) else float(v) for v in (centre, width))
    shares = [((x - (c - 0.5)) / (w - 1) + 0.5) for x in values.reshape(-1)]
    shown = np.clip(shares, 0, 1).reshape(values.shape) * 255
    return 255 - shown if header.PhotometricInterpretation == "MONOCHROME1" else shown


def is_square(header: Any) -> bool:
    spacing = header.get("PixelSpacing")
    return spacing is None or spacing[0] == spacing[1]


@pytest.mark.parametrize("path", [*PICTURES, *SLICES], ids=lambda path: path.name)
def test_every_real_file_is_shown_rightly_or_refused_by_name(path: Path) -> None:
    if path.name in REFUSED or not has_pixels(path):
        rule = REFUSED.get(path.name, "has no picture|known kinds of pictures are")
        with pytest.raises(FrameError, match=rule):
            open_media(path).read(0)
        return

    shown = open_media(path).read(0)

    header, pixels = stored(path)
    if not is_square(header):
        assert shown.shape[:2] != pixels.shape[:2]
    elif header.PhotometricInterpretation == "PALETTE COLOR":
        table = np.frombuffer(header.RedPaletteColorLookupTableData, "<u2")
        bits = header.RedPaletteColorLookupTableDescriptor[2]
        first = header.RedPaletteColorLookupTableDescriptor[1]
        red = table if bits == 16 else np.frombuffer(header.RedPaletteColorLookupTableData, np.uint8)
        wanted = red[(pixels.astype(int) - first).clip(0, len(red) - 1)] >> (bits - 8)
        np.testing.assert_array_equal(shown[..., 0], wanted)
    elif header.SamplesPerPixel == 3:
        np.testing.assert_array_equal(shown, pixels >> (header.BitsStored - 8))
    else:
        scaled = pixels * float(header.get("DoseGridScaling") or 1)
        if "DoseGridScaling" in header:  # auto is at least one unit wide, which a dose in Gy may not be
            assert shown.max() > 0
        else:
            np.testing.assert_allclose(shown[..., 0], shown_by_hand(header, scaled), atol=0.5001)
            assert (shown[..., 0] == shown[..., 2]).all()


def test_the_package_still_has_the_files_that_are_named_here() -> None:
    assert set(REFUSED) <= {path.name for path in PICTURES}
    assert len(PICTURES) >= 25
    assert len(SLICES) >= 25


def test_values_are_hounsfield_units() -> None:
    _, raw = stored(FILES / "CT_small.dcm")

    values = DicomFile(FILES / "CT_small.dcm", "ct", Window(AUTO)).values(0)

    np.testing.assert_array_equal(values, raw.astype(int) - 1024)
    assert (values.min(), values.max()) == (-896, 1167)


def test_a_named_window_is_of_the_instruments_units() -> None:
    shown = DicomFile(FILES / "CT_small.dcm", "ct", parse_window("50/400")).read(0)[..., 0]

    hounsfield = stored(FILES / "CT_small.dcm")[1].astype(int) - 1024
    assert (shown[hounsfield <= 50 - 0.5 - 399 / 2] == 0).all()
    assert (shown[hounsfield > 50 - 0.5 + 399 / 2] == 255).all()
    middle = np.abs(hounsfield - 50) < 5
    np.testing.assert_allclose(shown[middle], ((hounsfield[middle] - 49.5) / 399 + 0.5) * 255, atol=0.5)


def test_a_file_of_frames_is_a_clip_with_its_own_times() -> None:
    clip = open_media(FILES / "examples_ybr_color.dcm")

    assert clip.is_clip
    assert clip.num_frames == 30
    np.testing.assert_allclose(np.diff(clip.stamps_ns), 33.333e6, atol=1)
    frames = read_clip(clip, 4)
    wanted = stored(FILES / "examples_ybr_color.dcm", 29)[1]
    np.testing.assert_array_equal(frames[-1].image, wanted)


def change(name: str, **elements: Any) -> bytes:
    """A real file with other elements, not compressed."""
    header, pixels = stored(FILES / name)
    changed = copy.deepcopy(header)
    if changed.file_meta.TransferSyntaxUID != ExplicitVRLittleEndian:
        changed.PixelData, changed.file_meta.TransferSyntaxUID = pixels.tobytes(), ExplicitVRLittleEndian
    for keyword, value in elements.items():
        if keyword == "PixelPaddingValue":
            changed.add_new(keyword, "SS", value)
        elif value is None:
            delattr(changed, keyword)
        else:
            setattr(changed, keyword, value)
    buffer = pydicom.filebase.DicomBytesIO()
    changed.save_as(buffer, enforce_file_format=False)
    return buffer.getvalue()


def shown_gray(content: bytes, window: Window = OWN) -> np.ndarray:
    return decode_dicom(content, window)[..., 0]


MR = "MR_small.dcm"


def test_low_is_white_where_the_file_says_so() -> None:
    plain = shown_gray(change(MR))
    for elements in ({"PhotometricInterpretation": "MONOCHROME1"}, {"PresentationLUTShape": "INVERSE"}):
        np.testing.assert_array_equal(shown_gray(change(MR, **elements)), 255 - plain)
    both = change(MR, PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    np.testing.assert_array_equal(shown_gray(both), 255 - plain)  # the standard's way to say it, and said once


@pytest.mark.parametrize("kind", ["LINEAR_EXACT", "SIGMOID"])
def test_the_files_function_is_heeded(kind: str) -> None:
    raw = stored(FILES / MR)[1].astype(float)
    share = {"LINEAR_EXACT": (raw - 600) / 1600 + 0.5, "SIGMOID": 1 / (1 + np.exp(-4 * (raw - 600) / 1600))}[kind]
    np.testing.assert_allclose(shown_gray(change(MR, VOILUTFunction=kind)), share.clip(0, 1) * 255, atol=0.5001)


def lut_item(first: int, bits: int, table: np.ndarray) -> pydicom.Dataset:
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS", [len(table), first, bits])
    item.add_new("LUTData", "OW", table.astype("<u2").tobytes())
    return item


def test_a_table_of_brightness_takes_the_place_of_a_window() -> None:
    table = np.linspace(4095, 0, 2048).astype(int)
    content = change(MR, VOILUTSequence=[lut_item(0, 12, table)])
    raw = stored(FILES / MR)[1].astype(int)
    np.testing.assert_allclose(shown_gray(content), table[raw.clip(0, 2047)] / 4095 * 255, atol=0.5001)


def test_a_table_of_units_comes_before_the_window() -> None:
    table = np.arange(2048)[::-1]
    content = change(MR, ModalityLUTSequence=[lut_item(0, 16, table)])
    values = table[stored(FILES / MR)[1].astype(int).clip(0, 2047)]
    wanted = ((values - 599.5) / 1599 + 0.5).clip(0, 1) * 255
    np.testing.assert_allclose(shown_gray(content), wanted, atol=0.5001)


def test_padding_is_black_and_does_not_widen_auto() -> None:
    _, pixels = stored(FILES / MR)
    padded = pixels.copy()
    padded[:20] = -2000
    content = change(MR, PixelData=padded.tobytes(), PixelPaddingValue=-2000)

    shown = shown_gray(content, Window(AUTO))

    assert (shown[:20] == 0).all()
    alone = padded[20:].astype(float)
    low, high = (np.sort(alone, None)[int(p / 100 * (alone.size - 1))] for p in (0.5, 99.5))
    np.testing.assert_allclose(shown[20:], ((alone - low) / (high - low)).clip(0, 1) * 255, atol=0.5001)


@pytest.mark.parametrize(("spacing", "shape"), [([2, 1], (128, 64)), ([1, 2], (64, 128)), ([0.5, 0.5], (64, 64))])
def test_pixels_become_square(spacing: list[float], shape: tuple[int, int]) -> None:
    assert shown_gray(change(MR, PixelSpacing=spacing)).shape == shape


def test_frames_of_an_enhanced_file_have_their_own_rescale_and_window() -> None:
    def group(slope: float, centre: float) -> pydicom.Dataset:
        item, units, voi = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        units.RescaleSlope, units.RescaleIntercept, units.RescaleType = slope, -100, "US"
        voi.WindowCenter, voi.WindowWidth = centre, 800
        item.PixelValueTransformationSequence, item.FrameVOILUTSequence = [units], [voi]
        return item

    _, pixels = stored(FILES / MR)
    content = change(
        MR,
        PixelData=np.stack([pixels, pixels]).tobytes(),
        NumberOfFrames=2,
        WindowCenter=None,
        WindowWidth=None,
        PerFrameFunctionalGroupsSequence=[group(1, 300), group(2, 700)],
        FrameTimeVector=[0, 250],
    )
    clip = DicomFile(content, "enhanced", OWN)

    assert clip.stamps_ns.tolist() == [0, 250_000_000]
    for index, (slope, centre) in enumerate([(1, 300), (2, 700)]):
        wanted = ((pixels * float(slope) - 100 - (centre - 0.5)) / 799 + 0.5).clip(0, 1) * 255
        np.testing.assert_allclose(clip.read(index)[..., 0], wanted, atol=0.5001)
    with pytest.raises(FrameError, match="must have one frame, got 2; give its file as a clip"):
        decode_dicom(content, OWN)


def test_a_series_is_sorted_by_where_its_slices_lie(tmp_path: Path) -> None:
    source = FILES / "dicomdirtests" / "98892003" / "MR2"
    places = {}
    for number, path in enumerate(sorted(source.iterdir())):
        slice_ = pydicom.dcmread(path)
        slice_.SeriesInstanceUID = "1.2.3"
        slice_.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        slice_.ImagePositionPatient = [0, 0, 10.0 * ((number * 2) % 5)]
        slice_.InstanceNumber = number
        slice_.save_as(tmp_path / f"{number}")
        places[f"{number}"] = slice_.ImagePositionPatient[2]

    series = open_media(tmp_path, fps=2.0)

    assert isinstance(series, DicomSeries)
    assert [places[path.name] for path in series.paths] == sorted(places.values())
    assert series.stamps_ns.tolist() == [500_000_000 * k for k in range(len(places))]
    np.testing.assert_array_equal(series.read(0), open_media(series.paths[0]).read(0))


def test_slices_of_several_series_are_refused(tmp_path: Path) -> None:
    for number, name in enumerate(("77654033/CT2/17106", "98892001/CT5N/2062")):
        shutil.copy(FILES / "dicomdirtests" / name, tmp_path / f"{number}.dcm")
    with pytest.raises(FrameError, match="has slices of several series; give a folder of one"):
        open_media(tmp_path)


def test_a_picture_that_names_are_burned_into_is_not_published() -> None:
    content = change(MR, BurnedInAnnotation="YES")
    data = np.frombuffer(content, np.uint8)
    assert decode_picture(content).shape == (64, 64, 3)
    header = read_header(data, "dicom")
    image = EncodedImage(data=data, format="dicom", width=header.width, height=header.height)
    with pytest.raises(FrameError, match="names are burned into it"):
        decode_compressed(image)


def test_dicom_in_a_message_is_decoded_as_from_its_file() -> None:
    data = np.frombuffer(change(MR), np.uint8)
    image = EncodedImage(data=data, format="dicom", width=64, height=64)
    np.testing.assert_array_equal(decode_compressed(image), open_media(FILES / MR).read(0))


@pytest.mark.parametrize(
    ("elements", "rule"),
    [
        ({"Rows": 60000, "Columns": 60000}, "a picture must have 1 to 33554432 px, got 60000x60000"),
        ({"Rows": 63}, "damaged"),
        ({"NumberOfFrames": 10**6}, "must lie in"),
        ({"PixelSpacing": [100, 1]}, "at most 16 times as long as wide"),
        ({"Rows": None}, "has no picture"),
    ],
)
def test_what_is_too_large_or_damaged_is_refused(elements: dict[str, Any], rule: str) -> None:
    if "Rows" in elements and elements["Rows"] == 63:
        elements = {"PixelData": b"\0" * 100}
    with pytest.raises(FrameError, match=rule):
        shown_gray(change(MR, **elements))


def test_errors_name_no_patient() -> None:
    content = change(MR, PatientName="Doe^Jane", PatientID="4711", PixelData=b"\0\0")
    with pytest.raises(FrameError) as caught:
        shown_gray(content)
    assert "Doe" not in str(caught.value)
    assert "4711" not in str(caught.value)
