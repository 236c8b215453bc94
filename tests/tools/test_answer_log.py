"""Answers outlive the run that asked for them; what was cut off is asked again, another run's are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvila_ros.errors import ConfigError
from nvila_ros.tools.answer_log import AnswerLog

RUN = {"data": {"a": "1"}, "frames": 8}


def fill(path: Path, num_records: int = 3) -> None:
    with AnswerLog(path, RUN) as log:
        for index in range(num_records):
            log.add(("a", index), {"group": "g", "turns": [{"answer": f"so \u00e9 {index}"}]})


def test_answers_are_found_again(tmp_path: Path) -> None:
    fill(tmp_path / "log")

    with AnswerLog(tmp_path / "log", RUN) as log:
        assert log.lines[("a", 2)] == {"group": "g", "turns": [{"answer": "so \u00e9 2"}]}
        assert list(log.lines) == [("a", 0), ("a", 1), ("a", 2)]


def test_file_cut_at_any_byte_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fill(path)
    content = path.read_bytes()

    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        with AnswerLog(path, RUN) as log:
            known = len(log.lines)
            assert known == max(content[:size].count(b"\n") - 1, 0)
            for index in range(known, 3):
                log.add(("a", index), {"group": "g", "turns": [{"answer": f"so \u00e9 {index}"}]})
        assert path.read_bytes() == content


def test_answers_of_another_run_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "log")

    with pytest.raises(ConfigError, match=r"another run, \{'frames': 8\} and not \{'frames': 4\}"):
        AnswerLog(tmp_path / "log", RUN | {"frames": 4})


@pytest.mark.parametrize(
    "content",
    ["hello\n", "[]\n", '{"run": {"data": {"a": "1"}, "frames": 8}}\n{"x": 1}\n', "3\n", '{"question": "What?"}', "["],
)
def test_file_of_something_else_is_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes"
    path.write_text(content)

    with pytest.raises(ConfigError, match="holds no answers of nvila eval"):
        AnswerLog(path, RUN)
    assert path.read_text() == content


def test_device_is_no_file() -> None:
    with pytest.raises(ConfigError, match="/dev/zero is no file; choose another"):
        AnswerLog(Path("/dev/zero"), RUN)


def test_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory"):
        AnswerLog(tmp_path / "none" / "log", RUN)


def test_without_a_file_answers_are_held(tmp_path: Path) -> None:
    with AnswerLog(None, RUN) as log:
        log.add(("a", 0), {"group": "g", "turns": []})

        assert log.lines == {("a", 0): {"group": "g", "turns": []}}
