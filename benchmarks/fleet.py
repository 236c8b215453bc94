"""One server for many robots: answers a second, their ages, fairness, and what happens as the server fails.

Robots are those of `benchmarks.fleets.robots`: each shows 10 frames a second, has a standing query about clips of eight
frames once a second, and asks a question about such a clip every five. The server is `nvila serve` with nvila-tiny, a
process of its own on the same machine, so what is measured is the way there and not a GPU. Then a few robots see it
killed and started again, without and with a model to fall back on; stopped for some seconds; and so short of room that
it refuses. Prints two tables and, last, one JSON line; exits with 1 where a robot got no answer again.

    .venv/bin/python -m benchmarks.fleet --robots 1,4,16,64 --seconds 15
"""

from __future__ import annotations

import argparse
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.fleets.robots import FleetAnswer, FleetRobot, running_fleet
from benchmarks.served import ServedProcess
from nvila_ros.serving.pipeline import load_model
from nvila_ros.tools.options import positive, print_json, words
from nvila_ros.types import FinishReason

SERVER = ("world", "--size", "160x120", "--rate", "1", "--threads", "1")
SETTLE_S, FAULT_S = 3.0, 5.0
TIMEOUT_S = 2.0
RECOVER_S = 30.0
"""Within which answers must come again."""


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--robots", type=words, default=("1", "4", "16", "64"), help="how many (default: 1,4,16,64)")
    parser.add_argument("--seconds", type=positive, default=15, help="of each (default: %(default)s)")
    parser.add_argument("--fault-robots", type=positive, default=4, help="that see faults (default: %(default)s)")
    args = parser.parse_args()
    steady = [measure(int(number), args.seconds) for number in args.robots]
    faults = [
        see_fault("killed for 5 s", args.fault_robots, _kill),
        see_fault("killed, with a model here", args.fault_robots, _kill, has_fallback=True),
        see_fault("stopped for 5 s", args.fault_robots, _freeze),
        see_fault("a queue of one, 429", 2 * args.fault_robots, _wait, "--set", "queue_size=1"),
    ]
    console = Console(highlight=False, width=120)
    console.print(_steady_table(steady))
    console.print(_fault_table(faults))
    print_json({"steady": steady, "faults": faults})
    is_sound = all(each["recovered_s"] is not None for each in faults)
    return 0 if is_sound else 1


def measure(num_robots: int, seconds: float) -> dict[str, Any]:
    """Return what robots get of a sound server."""
    server = ServedProcess(*SERVER, "--set", "queue_size=256")
    try:
        server.wait_until_ready()
        with running_fleet(server.url, num_robots) as robots:
            time.sleep(SETTLE_S)
            begin_s = time.monotonic()
            time.sleep(seconds)
            end_s = time.monotonic()
    finally:
        server.end()
    answers = [each for robot in robots for each in robot.answers if begin_s <= each.at_s < end_s]
    good = [each for each in answers if each.reason.is_answered]
    ages = sorted(each.age_s for each in good)
    by_robot = np.array([sum(each.robot == robot.index for each in good) for robot in robots], float)
    return {
        "robots": num_robots,
        "answers_per_s": round(len(good) / (end_s - begin_s), 1),
        "age_s_median": round(float(np.median(ages)), 3) if ages else None,
        "age_s_p95": round(float(np.quantile(ages, 0.95)), 3) if ages else None,
        "least": int(by_robot.min()),
        "most": int(by_robot.max()),
        "fairness": round(fairness(by_robot), 3),
        "other_ends": _ends(each for each in answers if not each.reason.is_answered),
        "asked_again": sum(robot.model.counters()["remote_asked_again"] for robot in robots),
    }


def fairness(counts: np.ndarray) -> float:
    """Return Jain's index of answers by robot, (R,): 1 where all got as many, 1/R where one got all."""
    squares = len(counts) * float((counts**2).sum())
    return float(counts.sum() ** 2) / squares if squares else 0.0


ServerFault = Callable[[ServedProcess, "tuple[str, ...]"], ServedProcess]


def see_fault(
    name: str, num_robots: int, fault: ServerFault, *arguments: str, has_fallback: bool = False
) -> dict[str, Any]:
    """Return what robots get before, during and after a fault of the server."""
    fallbacks = [load_model("nvila-tiny", threads=1) for _ in range(num_robots if has_fallback else 0)]
    server = ServedProcess(*SERVER, *arguments)
    try:
        server.wait_until_ready()
        with running_fleet(server.url, num_robots, fallbacks, timeout_s=TIMEOUT_S) as robots:
            time.sleep(SETTLE_S)
            begin_s = time.monotonic()
            server = fault(server, arguments)
            sound_s = time.monotonic()
            recovered_s = _wait_for_answers(robots, sound_s)
            time.sleep(SETTLE_S)
    finally:
        server.end()
    during = [each for robot in robots for each in robot.answers if begin_s <= each.at_s < sound_s]
    good = [each for each in during if each.reason.is_answered]
    return {
        "fault": name,
        "robots": num_robots,
        "answered": len(good),
        "by_fallback": sum(each.backend != "remote" for each in good),
        "other_ends": _ends(each for each in during if not each.reason.is_answered),
        "asked_again": sum(robot.model.counters()["remote_asked_again"] for robot in robots),
        "recovered_s": recovered_s,
    }


def _wait_for_answers(robots: Sequence[FleetRobot], since_s: float) -> float | None:
    """Return after how long every robot has an answer of the server again; None where one waits in vain."""
    while time.monotonic() < since_s + RECOVER_S:
        firsts = [next((each.at_s for each in robot.answers if _is_new(each, since_s)), None) for robot in robots]
        if all(first is not None for first in firsts):
            return round(max(first - since_s for first in firsts if first is not None), 2)
        time.sleep(0.05)
    return None


def _is_new(answer: FleetAnswer, since_s: float) -> bool:
    return answer.at_s >= since_s and answer.reason.is_answered and answer.backend == "remote"


def _kill(server: ServedProcess, arguments: tuple[str, ...]) -> ServedProcess:
    port = int(server.url.rpartition(":")[2])
    server.end(signal.SIGKILL)
    time.sleep(FAULT_S)
    again = ServedProcess(*SERVER, *arguments, port=port)
    again.wait_until_ready()
    return again


def _freeze(server: ServedProcess, arguments: tuple[str, ...]) -> ServedProcess:
    server.process.send_signal(signal.SIGSTOP)
    time.sleep(FAULT_S)
    server.process.send_signal(signal.SIGCONT)
    return server


def _wait(server: ServedProcess, arguments: tuple[str, ...]) -> ServedProcess:
    time.sleep(2 * FAULT_S)
    return server


def _ends(answers: Any) -> dict[str, int]:
    """Count the ends of answers that are none; a standing query that is asked anew while it waits has lost nothing."""
    return dict(Counter(each.reason.name for each in answers if each.reason is not FinishReason.REPLACED))


def _steady_table(rows: Sequence[dict[str, Any]]) -> Table:
    heads = ("robots", "answers/s", "age s", "95 of 100", "least", "most", "fairness", "other ends", "asked again")
    table = Table(*heads)
    keys = ("robots", "answers_per_s", "age_s_median", "age_s_p95", "least", "most", "fairness", "other_ends")
    for row in rows:
        table.add_row(*(str(row[key]) for key in (*keys, "asked_again")))
    return table


def _fault_table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        "server", "robots", "answered", "by a model here", "other ends", "asked again", "all answered after s"
    )
    for row in rows:
        table.add_row(*(str(row[key]) for key in row))
    return table


if __name__ == "__main__":
    raise SystemExit(main())
