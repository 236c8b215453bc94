"""Tests are collected where a robot lacks packages, and what it runs is chosen."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import robot_subset
from tests.robot_subset import OPTIONAL, ROBOT, missing_package

TESTS = Path(__file__).parent

WITHOUT = """
import sys
import pytest

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, Without())
sys.exit(pytest.main(["-q", "--co", "-p", "no:cacheprovider", "-m", "robot", *sys.argv[2:]]))
"""


def test_every_entry_of_the_robots_subset_exists() -> None:
    assert [name for name in ROBOT if not (TESTS / name).exists()] == []


@pytest.mark.slow
def test_all_folders_are_collected_without_the_optional_packages() -> None:
    command = [sys.executable, "-c", WITHOUT, ",".join(sorted(OPTIONAL - {"hypothesis"})), str(TESTS)]

    run = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)

    assert run.returncode == 0, run.stdout
    assert "needs torch, which is not installed" in run.stdout
    assert int(re.search(r"(\d+)(?:/\d+)? tests collected", run.stdout)[1]) > 100


def test_a_missing_package_is_found_behind_the_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robot_subset, "OPTIONAL", {"no_such_package", "pytest"})
    error = RuntimeError("backend no_such_package needs 'no_such_package'")
    error.__cause__ = ModuleNotFoundError(name="no_such_package.part")

    assert missing_package(error) == "no_such_package"
    assert missing_package(ModuleNotFoundError(name="pytest.part")) == ""  # it is installed: the test is wrong
    assert missing_package(ModuleNotFoundError(name="nvila_ros.nothing")) == ""
    assert missing_package(None) == ""
