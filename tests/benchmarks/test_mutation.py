"""The score of a mutation run, from what mutmut writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("mutmut", reason="make mutation installs it")

from benchmarks import mutation


def test_scores_are_by_module_and_survivors_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exit_codes = {"room/a.py": {"a1": 1, "a2": 0, "a3": 36, "a4": None}, "room/b.py": {"b1": 33}, "room/c.py": {}}
    (tmp_path / "room").mkdir()
    for path, codes in exit_codes.items():
        (tmp_path / f"{path}.meta").write_text(json.dumps({"exit_code_by_key": codes}))
    monkeypatch.setattr(sys, "argv", ["mutation", "--folder", str(tmp_path)])

    mutation.main()

    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["survived: a2", "no tests: b1"]
    assert json.loads(lines[-1]) == {
        "room/a.py": {"mutants": 4, "killed": 2, "survived": 1, "not_tried": 1},
        "room/b.py": {"mutants": 1, "killed": 0, "survived": 1, "not_tried": 0},
        "all": {"mutants": 5, "killed": 2, "survived": 2, "not_tried": 1},
    }


def test_folder_without_results_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mutation", "--folder", str(tmp_path)])

    with pytest.raises(SystemExit):
        mutation.main()
    assert "run: make mutation" in capsys.readouterr().err
