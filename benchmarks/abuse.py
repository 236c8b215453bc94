"""An hour of random abuse: does the node stay up, answer, and say what is wrong?

The real node with nvila-tiny runs as a process with a camera. Each step does something that nobody should do:
messages, service and action requests, serialized bytes, parameters, signals, lifecycle transitions, files. After each a
plain question must be answered within `--hang` seconds, every refusal must name its rule, and the log may hold no
traceback and no endless line. A process may hold `--most` MiB more than when it began: for frames, tokens,
conversations, prompts, the runtime's own, and what the allocator keeps. Every step has a seed of its own, which a fault
names: `--seed SEED --first STEP --steps 1` does that step again. The last line is JSON; exit 1 after a fault.

Fast DDS is told to give memory back (config/fastdds_shm.xml): as ROS 2 sets it up, it keeps every buffer at the largest
message that was ever in it, in whoever subscribes, and a few questions of 10 MB among thousands fill a gigabyte.

    .venv/bin/python -m benchmarks.abuse --minutes 60
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message

from benchmarks.abusing import values
from benchmarks.abusing.robot import ROOT, SERVICES, Abused, AbuseFault, check_answer, isolate
from benchmarks.process_usage import resident_bytes
from nvila_ros.action import AskVideo
from nvila_ros.config import NodeConfig, bounds
from nvila_ros.srv import ListQueries
from nvila_ros.tools.options import positive, print_json

MIB, REPORT_S = 1 << 20, 30.0
TUNABLE = [name for name, bound in bounds(NodeConfig).items() if not bound.read_only]
CLI = (sys.executable, "-m", "nvila_ros.tools.cli")
AbuseStep = Callable[[Abused, random.Random], None]


def images(robot: Abused, rng: random.Random) -> None:
    """Send images that are none."""
    for _ in range(rng.randrange(1, 20)):
        robot.publish(robot.images, values.image(rng))


def questions(robot: Abused, rng: random.Random) -> None:
    """Ask over the topic, sometimes by the hundred."""
    for _ in range(rng.choice((1, 3, 300))):
        robot.publish(robot.question, values.question(rng))


def serialized(robot: Abused, rng: random.Random) -> None:
    """Send bytes that are no message."""
    for publisher, message in ((robot.question, values.question(rng)), (robot.images, values.image(rng))):
        for _ in range(rng.randrange(5)):
            robot.publish(publisher, values.spoiled(rng, serialize_message(message)))


def services(robot: Abused, rng: random.Random) -> None:
    """Call a service with anything in its fields; what it refuses must be explained."""
    name = rng.choice((*SERVICES, "ask", "ask"))
    response = robot.call(robot.services[name], values.message(rng, SERVICES[name].Request))
    if name == "ask":
        check_answer(response.answer)
    elif not response.success and not response.error:
        raise AbuseFault(f"{name} refused and named no rule")


def goals(robot: Abused, rng: random.Random) -> None:
    """Send goals, and cancel some."""
    sent = [robot.goals.send_goal_async(values.message(rng, AskVideo.Goal)) for _ in range(rng.randrange(1, 4))]
    handles = [robot.result(future, "a goal is accepted or rejected") for future in sent]
    accepted = [handle for handle in handles if handle.accepted]
    for handle in accepted:
        if rng.random() < 0.5:
            robot.result(handle.cancel_goal_async(), "a cancel is answered")
    for handle in accepted:
        check_answer(robot.result(handle.get_result_async(), "a goal has its result").result.answer)


def parameters(robot: Abused, rng: random.Random) -> None:
    """Set parameters to anything, then back to what they were."""
    names = rng.choices((*bounds(NodeConfig), "use_sim_time_", "x" * 300), k=rng.randrange(1, 4))
    told = robot.call(robot.parameters, _set({name: values.parameter(rng) for name in names}))
    for result in told.results:
        if not result.successful and not result.reason:
            raise AbuseFault(f"one of the parameters {names} was refused without a reason")
    default = NodeConfig()
    kept = robot.call(robot.parameters, _set({name: getattr(default, name) for name in TUNABLE}))
    if not all(result.successful for result in kept.results):
        raise AbuseFault(f"the defaults of {TUNABLE} are refused: {[result.reason for result in kept.results]}")


def _set(by_name: dict[str, Any]) -> SetParameters.Request:
    messages: list[ParameterMessage] = []
    for name, value in by_name.items():
        value = list(value) if isinstance(value, tuple) else value
        try:
            messages.append(Parameter(name, value=value).to_parameter_msg())
        except (AssertionError, TypeError, ValueError):  # rclpy cannot carry it either
            continue
    return SetParameters.Request(parameters=messages)


def standing(robot: Abused, rng: random.Random) -> None:
    """List the standing queries and remove all."""
    for state in robot.call(robot.services["list_queries"], ListQueries.Request()).queries:
        request = SERVICES["remove_query"].Request(name=state.query.name)
        if not (told := robot.call(robot.services["remove_query"], request)).success:
            raise AbuseFault(f"a query that is listed cannot be removed: {told.error}")


def lifecycle(robot: Abused, rng: random.Random) -> None:
    """Ask for transitions at random, then for those that lead back."""
    for _ in range(rng.randrange(1, 5)):
        change = Transition(
            id=rng.choice((0, 1, 2, 3, 4, 97, 255)), label=rng.choice(("", "", "deactivate", "none", "\0"))
        )
        if change.label != "shutdown":
            robot.call(robot.changes, ChangeState.Request(transition=change))
    for label in ("configure", "activate"):
        if robot.call(robot.states, GetState.Request()).current_state.label != "active":
            robot.call(robot.changes, ChangeState.Request(transition=Transition(label=label)))


def pauses(robot: Abused, rng: random.Random) -> None:
    """Stop the process for a moment."""
    import os

    os.kill(robot.pid, signal.SIGSTOP)
    time.sleep(rng.uniform(0, 1))
    os.kill(robot.pid, signal.SIGCONT)


def restarts(robot: Abused, rng: random.Random) -> None:
    """End the node amid work, once or repeatedly, and start it again."""
    questions(robot, rng)
    robot.stop(rng.choice((signal.SIGINT, signal.SIGTERM)), rng.choice((1, 1, 2, 3)))
    robot.start()


def files(robot: Abused, rng: random.Random) -> None:
    """Give spoiled files to programs, which must end in time, by one line and not by a traceback."""
    with tempfile.TemporaryDirectory() as folder:
        clip = (ROOT / "examples" / "clip.mp4").read_bytes()
        config = (ROOT / "checkpoints" / "nvila-tiny" / "config.json").read_bytes()
        name, content, words = rng.choice(
            (
                ("a.mp4", values.spoiled(rng, clip), (*CLI, "ask", "{}", "What?")),
                ("a.jpg", values.picture(rng), (*CLI, "ask", "{}", "What?")),
                ("config.json", values.spoiled(rng, config), (*CLI, "inspect", "{}/..")),
                ("a.yaml", values.yaml_file(rng), (*CLI, "plan", "{}")),
                ("a.jsonl", values.yaml_file(rng), (*CLI, "eval", "nvila-tiny", "{}")),
                (
                    "a.yaml",
                    values.yaml_file(rng),
                    (
                        sys.executable,
                        "-m",
                        "nvila_ros.ros.node",
                        "--ros-args",
                        "-p",
                        "standing_queries:={}",
                        "-r",
                        "__ns:=/b",
                    ),
                ),
            )
        )
        path = Path(folder, name)
        path.write_bytes(content)
        _run([word.replace("{}", str(path)).replace(f"{name}/..", "") for word in words], 12 * robot.hang_s)


def _run(command: list[str], within_s: float) -> None:
    is_node = "nvila_ros.ros.node" in command
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, errors="replace", timeout=within_s)
    except subprocess.TimeoutExpired as error:
        if is_node:  # its file was acceptable, so it runs
            return
        raise AbuseFault(f"{' '.join(command)} did not end within {within_s:g} s") from error
    if done.returncode not in (0, 1, 2) or "Traceback" in done.stderr:
        raise AbuseFault(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-1500:]}")


STEPS: dict[AbuseStep, float] = {
    images: 20,
    questions: 10,
    serialized: 10,
    services: 30,
    goals: 15,
    parameters: 10,
    standing: 4,
    lifecycle: 2,
    pauses: 3,
    restarts: 0.02,  # seldom enough that a process comes to know all that it must bear
    files: 2,
}
"""What is done, and how often among the others."""


def main(argv: list[str] | None = None) -> int:
    """Abuse the node; 1 after a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, metavar="M")
    parser.add_argument("--seed", type=int, default=int(time.time()), metavar="S", help="by default the time")
    parser.add_argument("--first", type=int, default=0, metavar="STEP", help="number of the first step")
    parser.add_argument("--steps", type=positive, metavar="N", help="end after so many")
    parser.add_argument("--hang", type=float, default=5.0, metavar="S", help="longest wait (default: %(default)g)")
    parser.add_argument("--most", type=float, default=448.0, metavar="MIB", help="above the start (default: 448)")
    args = parser.parse_args(argv)
    isolate()
    rclpy.init(args=[])
    robot = Abused(args.hang)
    run = AbuseRun(args, robot)
    try:
        robot.start()
        run.go()
    except AbuseFault as fault:
        run.faults.append(str(fault))
        print(f"FAULT at {run.place}: {fault}\n{''.join(robot.tail)[-3000:]}", flush=True)
    finally:
        robot.kill()
        rclpy.try_shutdown()
    print_json(run.summary())
    return bool(run.faults)


class AbuseRun:
    """The steps so far, and what they did to the node's memory."""

    def __init__(self, args: argparse.Namespace, robot: Abused) -> None:
        self._args, self._robot = args, robot
        self.place, self.faults = "the start", list[str]()
        self._counts: Counter[str] = Counter()
        self._pid = self._age = self._begun = 0
        self._most = 0.0
        self._begin_s = self._told_s = time.monotonic()

    def go(self) -> None:
        """Do step after step until the time is over.

        Raises:
            AbuseFault: the node did what it never should.
        """
        self._begin_s = time.monotonic()
        number = self._args.first
        while self._elapsed_s() < 60 * self._args.minutes and number - self._args.first != self._args.steps:
            rng = random.Random(f"{self._args.seed}/{number}")
            (step,) = rng.choices([*STEPS], weights=[*STEPS.values()])
            self.place = f"--seed {self._args.seed} --first {number} --steps 1 ({step.__name__})"
            step(self._robot, rng)
            self._robot.check()
            self._counts[step.__name__] += 1
            number += 1
            self._weigh()
            self._tell()

    def _weigh(self) -> None:
        held = resident_bytes(self._robot.pid)
        if self._robot.pid != self._pid:  # another process begins with another memory
            self._pid, self._age, self._begun = self._robot.pid, 0, held
        self._age += 1
        more = (held - self._begun) / MIB
        self._most = max(self._most, more)
        if more > self._args.most:
            raise AbuseFault(
                f"a process of {self._age} steps holds {held / MIB:.0f} MiB, {more:.0f} more than when it began; "
                f"{self._args.most:g} are allowed"
            )

    def _tell(self) -> None:
        if time.monotonic() - self._told_s < REPORT_S:
            return
        self._told_s = time.monotonic()
        print(
            f"{self._elapsed_s() / 60:6.1f} min  {sum(self._counts.values()):6d} steps  slowest answer "
            f"{self._robot.slowest_s:.2f} s  memory {resident_bytes(self._robot.pid) / MIB:.0f} MiB  {self.place}",
            flush=True,
        )

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._begin_s

    def summary(self) -> dict[str, Any]:
        """Return what was done and found."""
        return {
            "minutes": round(self._elapsed_s() / 60, 1),
            "seed": self._args.seed,
            "steps": dict(self._counts),
            "slowest_answer_s": round(self._robot.slowest_s, 2),
            "most_mib": round(self._most, 1),
            "log_lines": self._robot.num_lines,
            "faults": self.faults,
        }


if __name__ == "__main__":
    sys.exit(main())
