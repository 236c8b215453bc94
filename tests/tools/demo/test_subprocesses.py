"""No child outlives its parent's work, and one that fails says why."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from nvila_ros.tools.demo.subprocesses import Child, ChildError, Children

PROGRAMS = """
import os, signal, subprocess, sys, time

def fail():
    print("the checkpoint is missing")
    return 3

def sleep():
    print("ready", flush=True)
    time.sleep(60)

def ignore():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep()

def parent():
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    sleep()

main = {"fail": fail, "sleep": sleep, "ignore": ignore, "parent": parent}[sys.argv[1]]
"""


@pytest.fixture
def children(tmp_path: Path) -> Children:
    (tmp_path / "programs.py").write_text(PROGRAMS)
    return Children(tmp_path, {"PYTHONPATH": str(tmp_path)})


def _start(children: Children, name: str) -> Child:
    child = children.start(name, "programs", [name])
    end_s = time.monotonic() + 20
    while not child.log_path.read_text() and time.monotonic() < end_s:
        time.sleep(0.02)
    return child


def _group_runs(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_child_that_ends_is_reported_with_its_log(children: Children) -> None:
    with children:
        child = _start(children, "fail")
        child.process.wait(20)

        with pytest.raises(ChildError, match=r"fail ended with code 3; its log ends with\n  the checkpoint is missing"):
            children.check()


def test_children_are_stopped_whatever_happens(children: Children) -> None:
    started: list[Child] = []

    def work() -> None:
        with children:
            started.append(_start(children, "sleep"))
            children.check()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert started[0].process.returncode == -signal.SIGTERM


def test_child_that_does_not_listen_is_killed(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvila_ros.tools.demo.subprocesses.STOP_S", 0.3)
    with children:
        child = _start(children, "ignore")

    assert child.process.returncode == -signal.SIGKILL


def test_whole_group_is_stopped(children: Children) -> None:
    with children:
        child = _start(children, "parent")

    end_s = time.monotonic() + 10
    while _group_runs(child.process.pid) and time.monotonic() < end_s:
        time.sleep(0.05)  # the orphan is reaped by init
    assert not _group_runs(child.process.pid)


def test_interpreter_is_our_own(children: Children) -> None:
    with children:
        child = _start(children, "sleep")

        assert child.process.args[0] == sys.executable  # type: ignore[index]
