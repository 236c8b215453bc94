"""What long work prints of its progress where nobody watches a terminal."""

import json
import time

import pytest

from nvila_ros.tools.step_progress import StepProgress

STEPS = ("calibration", "llm")
SOON_S = 0.01


class Lines:
    """The lines on standard error so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys, self.text = capsys, ""

    def read(self) -> list[str]:
        self.text += self.capsys.readouterr().err
        return self.text.splitlines()

    def wait_for(self, start: str) -> None:
        deadline = time.monotonic() + 60
        while not any(line.startswith(start) for line in self.read()):
            assert time.monotonic() < deadline, self.text
            time.sleep(0.005)


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    return Lines(capsys)


def test_step_that_reports_nothing_still_prints_lines(lines: Lines) -> None:
    with StepProgress(STEPS, line_s=SOON_S) as progress:
        lines.wait_for("calibration: not begun, 0 s so far")
        progress.advance("calibration", 1, 5)
        lines.wait_for("calibration: 1/5, ")
        progress.advance("calibration", 5, 5)
        lines.wait_for("llm: not begun, ")

    assert "calibration: done" in lines.read()
    num_lines = len(lines.read())
    time.sleep(0.1)
    assert len(lines.read()) == num_lines


def test_work_that_goes_on_counts_what_was_done(lines: Lines) -> None:
    with StepProgress(("work",), line_s=SOON_S) as progress:
        count = progress.counter("work", 40, 38)
        lines.wait_for("work: 38/40, ")
        count("unit 38")
        lines.wait_for("work: 39/40 unit 38, ")
        count("unit 39")

    assert lines.read()[-1] == "work: done"


def test_short_work_prints_its_end_alone(lines: Lines) -> None:
    with StepProgress(("work",)) as progress:
        count = progress.counter("work", 3)
        for _ in range(3):
            count()

    assert lines.read() == ["work: done"]


def test_lines_become_rarer(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    progress = StepProgress(("work",))
    monkeypatch.setattr(progress._is_over, "wait", lambda wait_s: waits.append(wait_s) or len(waits) > 40)

    with progress:
        pass

    assert waits[0] == 5
    assert waits == sorted(waits)
    assert waits[-1] == 60


def test_hidden_progress_prints_nothing(lines: Lines) -> None:
    with StepProgress(("work",), is_shown=False, line_s=0.001) as progress:
        count = progress.counter("work", 2)
        count()
        time.sleep(0.05)
        count()

    assert lines.read() == []


def test_program_gets_json_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with StepProgress(STEPS, as_json=True, line_s=0.001) as progress:
        progress.advance("calibration", 1, 2)
        time.sleep(0.05)
        progress.advance("calibration", 1, 2)
        progress.advance("calibration", 2, 2)

    out, err = capsys.readouterr()
    assert [json.loads(line)["progress"] for line in out.splitlines()] == [0.25, 0.5]
    assert err == ""
