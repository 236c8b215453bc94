"""Every example runs as a user runs it, and its answers are right."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLIP = ROOT / "examples" / "clip.mp4"
WITHOUT_ROS = ("ask_clip", "choices", "stream")
WITH_ROS = ("ask_node", "standing_query")


def run_example(name: str, *arguments: str) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == {*WITHOUT_ROS, *WITH_ROS}


def test_clip_is_asked_about() -> None:
    assert run_example("ask_clip") == "right\n"
    assert run_example("ask_clip", str(CLIP), "Is there a star?") == "no\n"


def test_answer_is_streamed() -> None:
    text = run_example("stream")

    assert "a yellow square moving right" in text
    assert "a red triangle moving left" in text


def test_choices_come_with_probabilities() -> None:
    star, square, triangle = run_example("choices").splitlines()

    assert star.startswith("Is there a star? no (yes 0.0")
    assert star.endswith("; 8 frames encoded)")
    assert "yellow" in square
    assert square.endswith("; 0 frames encoded)")
    assert triangle.startswith("Which way is the triangle moving? left (left ")


@pytest.fixture(scope="module")
def node() -> Iterator[None]:
    """The real node with nvila-tiny, and a camera that shows the clip."""
    pytest.importorskip("rclpy", reason="needs ROS 2")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    commands = (
        ["-m", "nvila_ros.ros.node", "--ros-args", "-p", "threads:=1"],
        ["-m", "nvila_ros.ros.camera_publisher", "--ros-args", "-p", f"video:={CLIP}"],
    )
    processes = [subprocess.Popen([sys.executable, *command], env=env) for command in commands]
    wait_for_frames()
    yield
    for process in processes:
        process.terminate()
    assert [process.wait(30) for process in processes] == [0, 0]


def wait_for_frames() -> None:
    import rclpy

    from nvila_ros.client import NvilaClient
    from nvila_ros.errors import NoFramesError

    context = rclpy.Context()
    rclpy.init(context=context)
    asker = rclpy.create_node("waiting", context=context)
    with NvilaClient(asker, discovery_s=60.0) as client:
        while isinstance(client.ask("Is there a star?").exception(), NoFramesError):
            continue
    asker.destroy_node()
    rclpy.shutdown(context=context)


def python_blocks(document: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)


def run_block(code: str) -> str:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("document", ["README.md", "docs/python.md"])
def test_python_of_the_documents_runs_as_written(document: str) -> None:
    local, _ = python_blocks(document)

    answer, *_ = run_block(local).splitlines()

    assert answer == "right"


@pytest.mark.ros
@pytest.mark.usefixtures("node")
@pytest.mark.parametrize("document", ["README.md", "docs/python.md"])
def test_client_of_the_documents_runs_as_written(document: str) -> None:
    _, client = python_blocks(document)

    assert run_block(client).startswith("3 ")


@pytest.mark.ros
@pytest.mark.usefixtures("node")
def test_node_is_asked() -> None:
    answer, description = run_example("ask_node").splitlines()

    assert answer.startswith("3 (about a frame ")
    assert "square" in description


@pytest.mark.ros
@pytest.mark.usefixtures("node")
def test_standing_query_is_watched() -> None:
    assert run_example("standing_query").startswith("BEGIN: triangle, probability ")
