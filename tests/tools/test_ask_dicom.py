"""`nvila ask scan.dcm`, from the file of an instrument to the answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pydicom
import pytest

from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from nvila_ros.tools.cli import main
from nvila_ros.types import Frame, Query

pytestmark = pytest.mark.slow
FILES = Path(pydicom.__file__).parent / "data" / "test_files"
QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return load_model("nvila-tiny", threads=1)


def ask(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    assert main(["ask", *argv, "--threads", "1", "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def windowed(name: str, centre: float, width: float) -> np.ndarray:
    """A picture by the formula of PS3.3 C.11.2.1.2.1, from the stored values."""
    scan = pydicom.dcmread(FILES / name)
    units = scan.pixel_array * float(scan.get("RescaleSlope", 1)) + float(scan.get("RescaleIntercept", 0))
    shares = ((units - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)
    return np.repeat(np.rint(shares * 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.mark.parametrize(("name", "centre", "width", "option"), [
    ("CT_small.dcm", 40, 400, ["--pixel-window", "40/400"]),
    ("MR_small.dcm", 600, 1600, []),  # its own
])  # fmt: skip
def test_answer_is_about_the_window_of_the_scan(
    model: VisionLanguageModel,
    capsys: pytest.CaptureFixture[str],
    name: str,
    centre: float,
    width: float,
    option: list[str],
) -> None:
    told = ask(capsys, str(FILES / name), QUESTION, "--choices", "0,1,2,3,4", *option)

    frame = Frame(image=windowed(name, centre, width), stamp_ns=0)
    query = Query(query_id="q", question=QUESTION, choices=("0", "1", "2", "3", "4"))
    want = model.answer(query, [frame])
    assert told["answer"] == want.text
    assert list(told["probabilities"].values()) == pytest.approx(list(want.probabilities), abs=1e-5)


def test_clip_of_an_ultrasound_has_its_own_times(capsys: pytest.CaptureFixture[str]) -> None:
    told = ask(capsys, str(FILES / "examples_ybr_color.dcm"), QUESTION, "--frames", "4")

    assert told["stamps_s"] == pytest.approx([k * 0.033333 for k in (0, 10, 19, 29)], abs=1e-4)


def test_scan_that_needs_a_window_is_refused_with_the_presets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(FILES / "CT_small.dcm"), QUESTION, "--threads", "1"]) == 2

    error = capsys.readouterr().err
    assert "CT without a window of its own" in error
    assert "Traceback" not in error


def test_names_of_patients_are_in_no_output(capsys: pytest.CaptureFixture[str]) -> None:
    scan = pydicom.dcmread(FILES / "MR_small.dcm")
    told = json.dumps(ask(capsys, str(FILES / "MR_small.dcm"), QUESTION))

    for secret in (scan.PatientName, scan.PatientID, scan.StudyDate, scan.SOPInstanceUID):
        assert str(secret)
        assert str(secret) not in told
