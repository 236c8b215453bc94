"""`nvila call` asks the real node, in a process of its own; the programs explain themselves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from nvila_ros.config import NodeConfig, bounds
from nvila_ros.paths import version
from tests.ros.guard import LAMP_NODE, Guard
from tests.ros.robot import ROOT, Robot, own_lines, running, wait_until

NVILA = (sys.executable, "-m", "nvila_ros.tools.cli")


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NVILA, "call", *words], cwd=ROOT, capture_output=True, text=True, timeout=90)


def test_standing_queries_and_their_events() -> None:
    with running(command=LAMP_NODE) as (robot, camera):
        guard = Guard(robot, camera)
        added = call("add-query", "lamp", "Is the lamp on?", "--set", "trigger=rising", "--set", "rate_hz=10")
        assert (added.returncode, own_lines(added.stderr)) == (0, [])
        listed = call("list-queries").stdout
        events = subprocess.Popen(
            [*NVILA, "call", "events", "--count", "2"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        wait_until(lambda: robot.node.count_subscribers("/nvila/event") == 2, "it listens")
        guard.show(False)
        guard.show(True)
        guard.wait_for(1)
        guard.show(False)
        told = events.communicate(timeout=60)[0].splitlines()
        removed = call("remove-query", "lamp")

    assert listed == "lamp: Is the lamp on? rising, 10 Hz\n"
    assert [line.split()[:2] for line in told] == [["BEGIN", "lamp"], ["END", "lamp"]]
    assert (events.returncode, removed.returncode) == (0, 0)


@pytest.fixture(scope="module")
def robot() -> Iterator[Robot]:
    with running() as (robot, camera):
        robot.show(camera, 1, 2, 3)
        yield robot


def test_answer_goes_to_stdout_and_the_rest_to_stderr(robot: Robot) -> None:
    done = call("ask", "what is this", "--frames", "2", "--window", "9")

    assert (done.returncode, done.stdout) == (0, "what is this\n")
    assert own_lines(done.stderr)[-1].startswith("STOP, 2 frames of camera")


def test_json_has_every_field(robot: Robot) -> None:
    (line,) = call("--json", "ask", "what is this", "--set", "ago_start_s=5").stdout.splitlines()

    answer = json.loads(line)
    assert (answer["text"], answer["finish_reason"], answer["query"]["ago_start_s"]) == ("what is this", "STOP", 5.0)


def test_stream_is_the_text(robot: Robot) -> None:
    done = call("stream", "one two three")

    assert (done.returncode, done.stdout) == (0, "one two three\n")


def test_status_says_who_answers(robot: Robot) -> None:
    for words in (("status",), ("status", "--wait")):
        assert call(*words).stdout.startswith("READY fake numpy none")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ask", ""), "error: "),
        (("ask", "what", "--set", "frames=1"), "unknown field 'frames'; did you mean one of"),
        (("ask", "what", "--set", "num_frames"), "--set takes FIELD=VALUE"),
        (("ask", "what", "--set", f"choices={'[' * 9000}{']' * 9000}"), "--set takes FIELD=VALUE"),
        (("--node", "nobody", "ask", "what"), "nobody"),
        (("--node", "a b", "status"), "'a b' cannot be the name of a node"),
        (("ask", "ab\udce9"), "question must be UTF-8, got bytes that are none at character 2"),
        (("add-query", "a", "Is it on?", "--set", "trigger=never"), "trigger must be one of"),
        (("remove-query", "nothing"), "nothing"),
    ],
)
def test_what_is_refused_is_one_line_and_exit_2(words: tuple[str, ...], message: str, robot: Robot) -> None:
    done = call(*words)

    assert (done.returncode, done.stdout) == (2, "")
    (line,) = own_lines(done.stderr)
    assert line.startswith("nvila call: error: ")
    assert message in line


def test_interrupt_ends_a_call_at_once(robot: Robot) -> None:
    process = subprocess.Popen([*NVILA, "call", "events"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: robot.node.count_subscribers("/nvila/event") == 1, "it listens")
    process.send_signal(signal.SIGINT)

    assert own_lines(process.communicate(timeout=30)[1]) == []
    assert process.returncode == 130


def test_version_is_that_of_the_package() -> None:
    done = subprocess.run([*NVILA, "--version"], cwd=ROOT, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (0, f"nvila_ros {version()}\n")


@pytest.mark.parametrize("module", ["nvila_ros.ros.node", "nvila_ros.ros.camera_publisher"])
def test_programs_explain_themselves_and_refuse_stray_words(module: str) -> None:
    program = [sys.executable, "-m", module]
    shown = subprocess.run([*program, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    stray = subprocess.run(
        [*program, "num_frames:=8", "--ros-args", "-p", "frame_id:=x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert shown.returncode == 0
    assert "-p NAME:=VALUE" in shown.stdout
    assert module.endswith("publisher") or all(f"  {name}: " in shown.stdout for name in bounds(NodeConfig))
    assert (stray.returncode, stray.stdout) == (2, "")
    assert "'num_frames:=8' is not understood; parameters are given as --ros-args -p NAME:=VALUE" in stray.stderr
