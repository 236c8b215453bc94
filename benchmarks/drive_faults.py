"""The fault drill of `benchmarks.drive --faults N`: what fails amid a step, how soon the robot stands, what is said.

Robot, drive and the node that answers are real processes; what is chosen is a script that goes ahead for ever, since
the drill is about the drive and not about a model. Time counts from the order to fail, distance from where the robot
then was, as the simulation tells it fifteen times a second.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nvila_ros.ros.camera_publisher import ros_args
from nvila_ros.ros.drive_session import DriveRecord, DriveSession
from nvila_ros.tools.demo.graph import ros_environment
from nvila_ros.tools.demo.subprocesses import Child, Children
from tests.ros.open_task import open_task

AHEAD = 3
ANSWERS, SIM, DRIVE = "tests.ros.scripted_answers", "nvila_ros.ros.sim", "nvila_ros.ros.drive"


@dataclass(slots=True)
class FaultCourse:
    """The processes, and whoever sends goals and lets things fail."""

    children: Children
    session: DriveSession
    answers: Child
    drive: Child
    said: str = ""

    def restart(self) -> None:
        """Start again what was killed."""
        for name, module, args in (("answers", ANSWERS, answer_args()), ("drive", DRIVE, drive_args())):
            child: Child = getattr(self, name)
            if child.process.poll() is not None:
                setattr(self, name, self.children.start(name, module, args))


def answer_args() -> list[str]:
    """Return a script that goes ahead for ever."""
    return ros_args({"script": [AHEAD]})


def drive_args() -> list[str]:
    """Return the drive's parameters: its defaults, armed, with a lock."""
    return ros_args({"armed": True, "motion": "cmd_vel", "lock_topic": "lock"})


def _kill(child: Child) -> None:
    child.process.send_signal(signal.SIGKILL)


FAULTS: dict[str, tuple[Callable[[FaultCourse, Any], object], str]] = {
    "model process killed": (lambda course, _: _kill(course.answers), "NO_ANSWER"),
    "camera frozen": (lambda course, _: course.session.set("nvila_sim", fault="frozen"), "FROZEN"),
    "camera lost": (lambda course, _: course.session.set("nvila_sim", fault="lost"), "STALE"),
    "frames 2 s late": (lambda course, _: course.session.set("nvila_sim", fault="delayed"), "STALE"),
    "stamps jump": (lambda course, _: course.session.set("nvila_sim", fault="stamps"), "CLOCK_JUMP"),
    "drive node killed": (lambda course, _: _kill(course.drive), ""),
    "goal cancelled": (lambda _, handle: handle.cancel_goal_async(), "CANCELED"),
    "lock heartbeat lost": (lambda course, _: setattr(course.session, "is_unlocking", False), "DISARMED"),
}


@dataclass(slots=True)
class Tally:
    """What was measured of one fault; early are drives that ended before it was let happen."""

    stands_s: list[float] = field(default_factory=list)
    ways_m: list[float] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    early: Counter[str] = field(default_factory=Counter)


def run_once(course: FaultCourse, fault: str, tally: Tally) -> None:
    """Drive off, let it fail, and measure."""
    session, (inject, _) = course.session, FAULTS[fault]
    handle = _drive_off(session, tally)
    begin_s, begin_m = time.monotonic(), session.truth["traveled_m"]
    inject(course, handle)
    session.wait(lambda: session.truth["speed"] == session.truth["turn"] == 0.0, "the robot to stand")
    tally.stands_s.append(time.monotonic() - begin_s)
    if fault == "drive node killed":
        course.drive.process.wait()
        tally.reasons["(killed)"] += 1
    else:
        record: DriveRecord = session.finish(handle, 30.0)
        tally.reasons[record.result.end_reason_name] += 1
    session.rest(0.3)
    tally.ways_m.append(session.truth["traveled_m"] - begin_m)
    course.restart()


def _drive_off(session: DriveSession, tally: Tally) -> Any:
    """Return the handle of a drive that moves; one that a busy machine's own faults ended before is begun again."""
    session.is_unlocking = True
    while True:
        session.begin(open_task())
        session.rest(0.8)
        handle = session.send("Go to the red ball.")
        ended = handle.get_result_async()
        session.wait(lambda: session.truth["speed"] > 0.25 or ended.done(), "the robot to move")  # noqa: B023
        if not ended.done():
            return handle
        tally.early[ended.result().result.end_reason_name] += 1


def drill(num_times: int, out: Console | None = None) -> int:
    """Run every fault so many times; print a table, and last one JSON line."""
    environ = ros_environment()
    os.environ.update(environ)
    tallies = {fault: Tally() for fault in FAULTS}
    with tempfile.TemporaryDirectory(prefix="nvila_faults_") as name, Children(Path(name), environ) as children:
        children.start("sim", SIM, ros_args({"task": open_task()}))
        answers = children.start("answers", ANSWERS, answer_args())
        drive = children.start("drive", DRIVE, drive_args())
        with DriveSession(lambda: None) as session:
            session.wait_until_ready()
            course = FaultCourse(children, session, answers, drive)
            for fault, tally in tallies.items():
                for _ in range(num_times):
                    run_once(course, fault, tally)
    _report(tallies, out or Console())
    return 0


def _report(tallies: dict[str, Tally], console: Console) -> None:
    table = Table("fault", "times", "stands within, s: median", "most", "way, m: most", "said", "ended before")
    figures = {}
    for fault, tally in tallies.items():
        seconds = sorted(tally.stands_s)
        median, most, way = seconds[len(seconds) // 2], seconds[-1], max(tally.ways_m)
        said = ", ".join(f"{reason} {count}" for reason, count in tally.reasons.items())
        table.add_row(
            fault, str(len(seconds)), f"{median:.2f}", f"{most:.2f}", f"{way:.3f}", said, str(dict(tally.early) or "")
        )
        figures[fault] = {
            "median_s": median,
            "most_s": most,
            "most_m": way,
            "said": dict(tally.reasons),
            "early": dict(tally.early),
        }
    console.print(table)
    print(json.dumps(figures))
