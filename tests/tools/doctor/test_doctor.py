"""The report: facts of this machine and of others, and the outcome of every trial."""

import json
from pathlib import Path

import pytest

from nvila_ros.tools.cli import main
from nvila_ros.tools.doctor import doctor, machine
from nvila_ros.tools.doctor.trials import Trial, TrialOutcome

BROKEN = Trial(name="cpu w8", outcome=TrialOutcome.FAILS, detail="was killed by SIGILL", cure="pip install openvino")
ABSENT = Trial(name="torch", outcome=TrialOutcome.ABSENT, detail="needs torch")


@pytest.mark.parametrize(("outcomes", "code"), [((ABSENT, BROKEN), 1), ((ABSENT,), 0)])
def test_report_holds_facts_and_trials(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcomes: tuple[Trial],
    code: int,
) -> None:
    monkeypatch.setattr(doctor, "run_all", lambda report: iter(outcomes))

    assert main(["doctor", "--out", str(tmp_path / "report.json")]) == code

    report, out = json.loads((tmp_path / "report.json").read_text()), capsys.readouterr().out
    assert [trial["outcome"] for trial in report["trials"]] == [trial.outcome.value for trial in outcomes]
    assert report["facts"]["processor"]["cores"] in out
    assert all(trial.detail in out and trial.cure in out for trial in outcomes)
    assert json.loads(out.splitlines()[-1]).items() >= {trial.name: trial.outcome.value for trial in outcomes}.items()


def test_facts_alone_try_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--facts", "--out", str(tmp_path / "report.json")]) == 0

    assert json.loads((tmp_path / "report.json").read_text())["trials"] == []


def test_report_that_cannot_be_written_is_refused_before_any_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "run_all", lambda report: pytest.fail("tried"))

    (tmp_path / "file").write_text("no folder")

    assert main(["doctor", "--out", str(tmp_path / "file" / "report.json")]) == 2
    assert "report.json cannot be written" in capsys.readouterr().err


def test_jetson_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board, release = tmp_path / "model", tmp_path / "release"
    board.write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    release.write_text("# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic\n# more\n")
    monkeypatch.setattr(machine, "BOARD", board)
    monkeypatch.setattr(machine, "JETSON_RELEASE", release)

    facts = machine.describe()["machine"]

    assert facts["board"] == "NVIDIA Jetson AGX Orin Developer Kit"
    assert facts["jetson"] == "R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic"


def test_what_a_machine_does_not_have_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "GPU_QUERY", ("no-such-program",))
    monkeypatch.setattr(machine, "MEMINFO", Path("/no/such/file"))

    facts = machine.describe()

    assert "gpu" not in facts["gpu"]
    assert "memory" not in facts["machine"]
