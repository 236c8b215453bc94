"""What the node says of its model and does for those who ask before it is there; builds are real ones."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("torch")
pytest.importorskip("nvila_ros.msg")

from nvila_ros.models.build import is_build
from nvila_ros.msg import Answer, Status
from nvila_ros.ros.messages import TRANSIENT_LOCAL
from tests.ros.robot import REAL_NODE, SLOW_NODE, NodeProcess, Robot, child_of, running, wait_until

RECIPE = """
model: nvila-tiny
device: cpu
decoder: {awq: false, clip: false}
calibration: {media: tiny-world, num_samples: 1, clip_frames: 2}
"""
BUILD = ("-p", "build_missing_engines:=true")
BUILT_S = 180.0  # generous: a build gives way to all else that runs


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that is built in seconds, into a folder of this test."""
    monkeypatch.setenv("NVILA_ROS_BUILDS", str(tmp_path / "builds"))
    path = tmp_path / "quick.yaml"
    path.write_text(RECIPE)
    return path


@contextlib.contextmanager
def paused(pid: int) -> Iterator[None]:
    """A process that does nothing meanwhile, and goes on then."""
    os.kill(pid, signal.SIGSTOP)
    yield
    os.kill(pid, signal.SIGCONT)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_missing_build_is_refused_with_the_command_that_makes_it(recipe: Path) -> None:
    process = NodeProcess("-p", f"recipe:={recipe}", "-p", "media:=/my clips", command=REAL_NODE)

    assert process.wait() == 2
    (line,) = [line for line in process.log.splitlines() if line.startswith("nvila_node: error: ")]
    assert "recipe quick has no finished build" in line
    assert shlex.join(["nvila", "build", str(recipe), "--media", "/my clips"]) in line
    assert "build_missing_engines" in line


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_missing_build_is_built_and_then_answers(recipe: Path) -> None:
    with Robot(*BUILD, "-p", f"recipe:={recipe}", command=REAL_NODE, state=Status.BUILDING) as robot:
        with paused(child_of(robot.process.pid)):
            robot.show(robot.camera(), 1)
            refused = robot.ask("What color is the circle?")
        ready = robot.wait_for_state(Status.READY, BUILT_S)
        answer = robot.ask("What color is the circle?")

        assert refused.finish_reason == Answer.REJECTED
        assert "the model is being built" in refused.error
        assert answer.finish_reason == Answer.STOP, answer.error
        assert (ready.model, ready.backend, ready.precision) == (answer.model, answer.backend, answer.precision)
        assert (answer.backend, answer.precision, ready.progress) == ("cpu", "w8a8+w4a8", 1.0)
        building = [status for status in robot.statuses if status.state == Status.BUILDING]
        assert [status.progress for status in building] == sorted(status.progress for status in building)
        assert {"llm", "vision_tower"} <= {status.part for status in building}
        late: list[Status] = []
        robot.node.create_subscription(Status, "nvila/status", late.append, TRANSIENT_LOCAL)
        wait_until(lambda: bool(late), "who comes late is told")
        assert late[0].state == Status.READY

    with Robot("-p", f"recipe:={recipe}", command=REAL_NODE) as robot:
        assert Status.BUILDING not in {status.state for status in robot.statuses}
        assert robot.statuses[-1].precision == "w8a8+w4a8"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_unquantized_checkpoint_answers_while_the_build_runs(recipe: Path) -> None:
    arguments = (*BUILD, "-p", f"recipe:={recipe}", "-p", "answer_while_building:=true")
    with Robot(*arguments, command=REAL_NODE, state=Status.BUILDING) as robot:
        with paused(child_of(robot.process.pid)):
            robot.show(robot.camera(), 1)
            before = robot.ask("What color is the circle?")
            assert robot.statuses[-1].model == "nvila-tiny"
        robot.wait_for_state(Status.READY, BUILT_S)
        wait_until(lambda: robot.ask("What color is the circle?").precision == "w8a8+w4a8", "the build answers")

        assert (before.finish_reason, before.precision) == (Answer.STOP, "fp32")
        assert {answer.finish_reason for answer in robot.answers} == {Answer.STOP}


@pytest.mark.parametrize("may_answer", [False, True])
def test_killed_build_leaves_the_node_up_and_saying_why(recipe: Path, may_answer: bool) -> None:
    arguments = (*BUILD, "-p", f"recipe:={recipe}", "-p", f"answer_while_building:={may_answer}")
    with Robot(*arguments, command=REAL_NODE, state=Status.BUILDING) as robot:
        os.kill(child_of(robot.process.pid), signal.SIGKILL)
        robot.show(robot.camera(), 1)

        failed = robot.wait_for_state(Status.FAILED)
        answer = robot.ask("What color is the circle?")

        assert f"nvila build {recipe} was ended by SIGKILL" in failed.text
        assert failed.text in robot.fresh_diagnostics()["message"]
        if may_answer:
            assert (answer.finish_reason, answer.precision, failed.precision) == (Answer.STOP, "fp32", "fp32")
        else:
            assert (answer.finish_reason, failed.model) == (Answer.REJECTED, "")
            assert failed.text in answer.error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_node_that_ends_while_building_leaves_no_child_and_nothing_that_loads(recipe: Path, number: int) -> None:
    process = NodeProcess("-p", f"recipe:={recipe}", *BUILD, command=REAL_NODE)
    child = child_of(process.pid)

    code = process.stop(number)

    assert code == (0 if number == signal.SIGINT else -signal.SIGKILL), process.log
    wait_until(lambda: not is_alive(child), "the build has ended")
    assert not is_build(recipe.parent / "builds" / "quick")


def test_queries_wait_while_the_model_loads(tmp_path: Path) -> None:
    with running("-p", f"model:={tmp_path / 'now'}", command=SLOW_NODE, state=Status.LOADING) as (robot, camera):
        late = robot.ask_later("too late", deadline_s=0.2)
        patient = robot.ask_later("what is this")
        wait_until(late.done, "a deadline ends the wait")
        assert late.result().answer.finish_reason == Answer.DEADLINE
        assert robot.statuses[-1].state == Status.LOADING
        robot.show(camera, 1)

        (tmp_path / "now").touch()
        wait_until(patient.done, "the model answers")

        assert patient.result().answer.text == "what is this"
        assert robot.statuses[-1].state == Status.READY


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_loading_ends_the_node_at_once(number: int, tmp_path: Path) -> None:
    with Robot("-p", f"model:={tmp_path / 'never'}", command=SLOW_NODE, state=Status.LOADING) as robot:
        asked = robot.ask_later()
        wait_until(lambda: robot.fresh_diagnostics()["queue_depth"] == "1", "the query waits")

        assert robot.process.stop(number) == 0, robot.process.log  # its model never comes
        wait_until(asked.done, "the query is answered")
        assert asked.result().answer.finish_reason == Answer.CANCELED
