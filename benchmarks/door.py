"""What the HTTP door costs: processor time while frames come in, and how much later answers come than over ROS.

The real node and the real camera (the synthetic world, rgb8, 1280x720 at 30 Hz over Fast DDS) run as processes. First
nobody asks, and the node's processor time is read without a door, with one, and with one viewer who follows the events
and takes every picture that is offered, as the page does. Then questions to a fast model are asked in turn over the
service and over HTTP, on a connection that stays open, about the same frame. Prints a table and, last, one JSON line.

    .venv/bin/python -m benchmarks.door --seconds 20
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table

from benchmarks.process_usage import cpu_s
from nvila_ros.ros.camera_publisher import ros_args
from nvila_ros.tools.demo.graph import ros_environment
from nvila_ros.tools.options import positive, print_json, size
from tests.ros.robot import REAL_NODE, Robot, wait_until

QUESTION = "Is there a star?"
CHOICES = ["yes", "no"]
SETTLE_S = 2.0


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=positive, default=20, help="of each reading (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=3, help="readings of each kind (default: %(default)s)")
    parser.add_argument("--questions", type=positive, default=200, help="of each kind (default: %(default)s)")
    parser.add_argument("--size", type=size, default=(1280, 720), metavar="WxH")
    parser.add_argument("--rate", type=float, default=30.0, help="frames a second")
    args = parser.parse_args()
    os.environ.update(ros_environment())
    port = _free_port()
    cores: dict[str, list[float]] = {"no door": [], "door": [], "door and viewer": []}
    for _ in range(args.rounds):  # in turn: what else the machine does meanwhile must not favour one
        with _node(args) as robot:
            cores["no door"].append(_read_cores(robot.process.pid, args.seconds))
        with _node(args, "-p", f"http_port:={port}") as robot:
            cores["door"].append(_read_cores(robot.process.pid, args.seconds))
            with _viewer(port) as pictures_hz:
                cores["door and viewer"].append(_read_cores(robot.process.pid, args.seconds))
                rate_hz = pictures_hz()
    with _node(args, "-p", f"http_port:={port}") as robot:
        latencies = _ask_in_turn(robot, port, args.questions)
    return _report(cores, latencies, rate_hz)


@contextlib.contextmanager
def _node(args: argparse.Namespace, *arguments: str) -> Iterator[Robot]:
    """Run a node and a camera that it sees."""
    width, height = args.size
    values = {"world": 0, "width": width, "height": height, "rate_hz": args.rate}
    command = [sys.executable, "-m", "nvila_ros.ros.camera_publisher", *ros_args(values)]
    with Robot("-p", "buffer_bytes:=134217728", *arguments, command=REAL_NODE) as robot:
        camera = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: robot.num_buffered() > args.rate, "frames come")
            time.sleep(SETTLE_S)
            yield robot
        finally:
            camera.terminate()
            camera.wait()


def _read_cores(pid: int, seconds: int) -> float:
    """Return how many cores a process takes."""
    begin_s, used_s = time.monotonic(), cpu_s(pid)
    time.sleep(seconds)
    return (cpu_s(pid) - used_s) / (time.monotonic() - begin_s)


@contextlib.contextmanager
def _viewer(port: int) -> Iterator[Callable[[], float]]:
    """Look as the page does; yields how many pictures came a second."""
    stop = threading.Event()
    pictures: list[float] = []

    def follow() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/api/events")
        response = connection.getresponse()
        while not stop.is_set():
            response.readline()
        connection.close()

    def look() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        after = "0"
        while not stop.is_set():
            connection.request("GET", f"/api/cameras/camera/latest.jpg?width=640&after_ns={after}")
            response = connection.getresponse()
            response.read()
            after = response.headers.get("X-Nvila-Stamp-Ns", after)
            pictures.append(time.monotonic())
        connection.close()

    threads = [threading.Thread(target=work) for work in (follow, look)]
    for thread in threads:
        thread.start()
    time.sleep(SETTLE_S)
    try:
        yield lambda: (len(pictures) - 1) / max(pictures[-1] - pictures[0], 1e-9)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _ask_in_turn(robot: Robot, port: int, count: int) -> dict[str, list[float]]:
    """Return how long answers took beyond what the node's own clock says of them, s, over ROS and over HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    said = [{"role": "user", "content": QUESTION}]
    body = json.dumps({"model": "live", "messages": said, "structured_outputs": {"choice": CHOICES}})
    taken: dict[str, list[float]] = {"service": [], "http": [], "service whole": [], "http whole": []}
    for _ in range(count):
        begin_s, done = time.monotonic(), threading.Event()
        future = robot.ask_later(QUESTION, choices=CHOICES)
        future.add_done_callback(lambda _, done=done: done.set())
        done.wait(30)
        taken["service whole"].append(time.monotonic() - begin_s)
        taken["service"].append(taken["service whole"][-1] - future.result().answer.total_s)
        begin_s = time.monotonic()
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = json.load(connection.getresponse())
        taken["http whole"].append(time.monotonic() - begin_s)
        taken["http"].append(taken["http whole"][-1] - answer["nvila"]["timings"]["total_s"])
    connection.close()
    return taken


def _report(cores: dict[str, list[float]], latencies: dict[str, list[float]], pictures_hz: float) -> int:
    table = Table("", "median", "all", title="processor time of the node, cores")
    medians = {name: statistics.median(values) for name, values in cores.items()}
    for name, values in cores.items():
        table.add_row(name, f"{medians[name]:.3f}", " ".join(f"{value:.3f}" for value in values))
    Console().print(table)
    table = Table("", "p50 ms", "p95 ms", title="answers, beyond the node's own time, and as a whole")
    p95 = {name: statistics.quantiles(values, n=20)[-1] * 1e3 for name, values in latencies.items()}
    for name, values in latencies.items():
        table.add_row(name, f"{statistics.median(values) * 1e3:.2f}", f"{p95[name]:.2f}")
    Console().print(table)
    more = medians["door and viewer"] - medians["no door"]
    print_json(
        {
            "cores": {name: round(value, 4) for name, value in medians.items()},
            "cores_of_door_and_viewer": round(more, 4),
            "pictures_hz": round(pictures_hz, 2),
            "p95_ms": {name: round(value, 3) for name, value in p95.items()},
            "http_later_p95_ms": round(p95["http"] - p95["service"], 3),
        }
    )
    return 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    raise SystemExit(main())
