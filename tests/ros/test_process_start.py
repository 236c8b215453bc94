"""What the node's programs say where they cannot start: one line that names what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from nvila_ros.errors import ConfigError
from nvila_ros.ros import process
from tests.ros.robot import ROOT, own_lines


def test_home_that_takes_no_log_is_not_blamed_on_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()  # even root makes no folder below a file
    monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "file" / "log"))
    done = subprocess.run(
        [sys.executable, "-m", "nvila_ros.ros.node"], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )

    assert done.returncode == 2
    (line,) = own_lines(done.stderr)
    assert line.startswith("nvila_node: error: ")
    assert line.endswith("set ROS_LOG_DIR to a folder that this user may write to")
    assert "arguments" not in line


def test_arguments_of_ros_that_are_wrong_are_named() -> None:
    with pytest.raises(ConfigError, match="ROS arguments are not acceptable: failed to initialize rcl"):
        process.init_ros(["node", "--ros-args", "--params-file", "/nowhere/a.yaml"])


@pytest.mark.parametrize("module", ["node", "camera_publisher"])
def test_help_to_a_full_disk_is_one_line(module: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", f"nvila_ros.ros.{module}", "--help"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)

    assert done.returncode == 2
    assert done.stderr.endswith(": error: the help cannot be written: No space left on device\n")
    assert done.stderr.count("\n") == 1
