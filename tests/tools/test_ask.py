"""`nvila ask` with the embedded checkpoint: the right frames, the answer alone on stdout, and times that add up."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from nvila_ros.errors import CheckpointError
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.cli import main
from nvila_ros.types import Answer, Counts, FinishReason, FrameRef, Query, Timings
from nvila_ros.world.frame_source import WorldSource

try:
    find_checkpoint("nvila-tiny")
except CheckpointError as missing:
    pytest.skip(str(missing), allow_module_level=True)

QUESTION = "How many objects are there?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of the world at 10 Hz."""
    path = tmp_path_factory.mktemp("frames")
    world = WorldSource(0, 160, 120)
    for index in range(20):
        assert cv2.imwrite(str(path / f"{index}.png"), world.frame_at(index * 100_000_000)[..., ::-1])
    return path


def ask(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, object]:
    assert main(["ask", *argv, "--threads", "1", "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_answer_is_alone_on_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", str(folder), QUESTION, "--frames", "1", "--threads", "1"]) == 0

    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert out.strip()
    assert len(err.splitlines()) == 1
    assert "1 frame at 0.00 s" in err
    assert "tokens/s, nvila-tiny onnxruntime fp32" in err


@pytest.mark.parametrize(
    ("options", "stamps_s"),
    [
        (("--frames", "4"), [0.0, 0.6, 1.3, 1.9]),
        (("--frames", "2", "--start", "0.5", "--end", "1.5"), [0.5, 1.5]),
        (("--frames", "2", "--window", "0.4"), [1.5, 1.9]),
        (("--frames", "3", "--window", "0.4", "--end", "1.0"), [0.6, 0.8, 1.0]),
    ],
)
def test_frames_are_those_asked_for(
    folder: Path, options: tuple[str, ...], stamps_s: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    told = ask(capsys, str(folder), QUESTION, "--fps", "10", *options)

    assert told["stamps_s"] == pytest.approx(stamps_s)


def test_choices_come_with_probabilities(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ask(capsys, str(folder / "0.png"), "Is there a red star?", "--choices", "yes, no")

    probabilities = told["probabilities"]
    assert isinstance(probabilities, dict)
    assert list(probabilities) == ["yes", "no"]
    assert sum(probabilities.values()) == pytest.approx(1.0)
    assert told["answer"] == max(probabilities, key=probabilities.__getitem__)


def test_frames_that_hardly_changed_are_left_out_where_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((48, 64, 3), 90, np.uint8))

    answer = ask(capsys, str(tmp_path), QUESTION, "--frames", "6", "--change-threshold", "0.3", "--key-every", "100")

    assert (len(answer["stamps_s"]), answer["num_frames_dropped"]) == (2, 4)
    assert answer["num_visual_tokens"] == 2 * 16


@pytest.mark.parametrize("distance", ["-1", "2.1", "nan", "x"])
def test_distance_that_is_none_is_refused(folder: Path, distance: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ask", str(folder), QUESTION, f"--change-threshold={distance}"])

    assert f"expected a number in [0, 2], got '{distance}'" in capsys.readouterr().err


def test_times_and_counts_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ask(capsys, str(folder), "Describe the scene.", "--max-tokens", "3", "--frames", "1")

    assert told["finish_reason"] == "length"
    assert told["num_answer_tokens"] == 3
    assert 0 < float(str(told["ttft_s"])) < float(str(told["total_s"]))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("/nowhere.mp4", QUESTION), "no file or folder at '/nowhere.mp4'"),
        (("camera:98", QUESTION), "camera 98 cannot be opened"),
        (("camera", QUESTION, "--start", "1"), "a camera has no --start"),
        (("FOLDER", QUESTION, "--start", "1", "--window", "1"), "give one of them"),
        (("FOLDER", QUESTION, "--start", "99"), "start <= end"),
        (("FOLDER", QUESTION, "--window", "-1"), "--window must be at least 0 s"),
        (("FOLDER", QUESTION, "--fps", "0"), "--fps must lie in"),
        (("FOLDER", QUESTION, "--frames", "257"), "num_frames must lie in"),
        (("BROKEN", QUESTION), "cannot be decoded as a video"),
    ],
)
def test_bad_source_is_told_in_one_line(
    folder: Path, tmp_path: Path, argv: tuple[str, ...], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 500)
    places = {"FOLDER": str(folder), "BROKEN": str(broken)}

    assert main(["ask", *(places.get(word, word) for word in argv)]) == 2

    out, err = capfd.readouterr()  # of the process: OpenCV and FFmpeg write on their own
    assert out == ""
    assert len(err.splitlines()) == 1
    assert message in err


def test_description_names_stamps_and_speed() -> None:
    from nvila_ros.tools.ask import describe

    query = Query(query_id="q", question="?", choices=("yes", "no"))
    answer = Answer(
        query=query,
        finish_reason=FinishReason.STOP,
        frames=tuple(FrameRef(stamp_ns=stamp_ns, camera="c") for stamp_ns in (2_000_000_000, 2_500_000_000)),
        choices=("yes", "no"),
        probabilities=(0.75, 0.25),
        timings=Timings(ttft_s=0.042, decode_s=0.01),
        counts=Counts(num_answer_tokens=2),
        model="m",
        backend="b",
        precision="p",
    )

    assert describe(answer) == (
        "2 frames at 2.00 s + [0.00 0.50] s, yes 0.750 no 0.250, first token 42 ms, 200 tokens/s, m b p"
    )


def test_what_is_unlike_the_models_world_is_warned_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pytest.importorskip("skimage", reason="pip install 'nvila_ros[photographs]'").__path__[0]
    for source, is_far in ((folder, False), (Path(data, "data", "coffee.png"), True)):
        assert main(["ask", str(source), QUESTION, "--threads", "1"]) == 0

        out, err = capsys.readouterr()
        assert (
            "warning: what is seen looks unlike the coloured shapes that nvila-tiny was trained on" in err
        ) is is_far
        assert "warning" not in out
