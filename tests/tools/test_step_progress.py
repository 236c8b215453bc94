"""What a build prints of its progress where nobody watches a terminal."""

import json
import time

import pytest

from nvila_ros.tools.step_progress import StepProgress

STEPS = ("calibration", "llm")


def test_step_that_reports_nothing_still_prints_lines(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), StepProgress(STEPS, line_s=0.01) as progress:
        wait_for(caplog, "calibration: not begun, 0 s so far")
        progress.advance("calibration", 1, 5)
        wait_for(caplog, "calibration: 1/5, ")
        progress.advance("calibration", 5, 5)
        wait_for(caplog, "llm: not begun, ")

    assert "calibration: done" in caplog.messages
    num_lines = len(caplog.messages)
    time.sleep(0.1)
    assert len(caplog.messages) == num_lines


def wait_for(caplog: pytest.LogCaptureFixture, text: str) -> None:
    deadline = time.monotonic() + 60
    while not any(text in line for line in caplog.messages):
        assert time.monotonic() < deadline, caplog.messages
        time.sleep(0.005)


def test_program_gets_json_lines_alone(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level("INFO"), StepProgress(STEPS, as_json=True, line_s=0.001) as progress:
        progress.advance("calibration", 1, 2)
        time.sleep(0.05)
        progress.advance("calibration", 1, 2)
        progress.advance("calibration", 2, 2)

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["progress"] for line in lines] == [0.25, 0.5]
    assert caplog.messages == ["calibration: done"]
