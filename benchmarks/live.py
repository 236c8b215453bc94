"""A live camera for a minute: does the node keep up, keep its memory, and answer every question?

The real camera node (the synthetic world, rgb8 over Fast DDS) and the real node run as two processes; a third asks a
question each half second, over service and action in turn, of one frame and of eight. Prints a table of the node's
memory over time and, last, one JSON line. Exit 1 if a question went unanswered or memory grew beyond the buffer.

    .venv/bin/python -m benchmarks.live --seconds 60
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.process_usage import cpu_s, resident_bytes
from nvila_ros.errors import NvilaError
from nvila_ros.ros.camera_publisher import ros_args
from nvila_ros.ros.demo_client import DemoClient
from nvila_ros.tools.demo.demo import ANSWER_S, CAMERA_S, NODE, START_S
from nvila_ros.tools.demo.graph import ros_environment
from nvila_ros.tools.demo.subprocesses import Children
from nvila_ros.tools.options import positive, print_json, size
from nvila_ros.types import Answer

MIB = 1 << 20
ASK_EVERY_S = 0.5
QUESTIONS = ("How many objects are there?", "What do you see?", "Is there a red circle?")
NUM_SETTLING = 20  # questions before the first reading: the runtime allocates as the first ones come
GROWTH_MIB = 16  # what an allocator may keep for itself after that


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=positive, default=60)
    parser.add_argument("--size", type=size, default=(1280, 720), metavar="WxH")
    parser.add_argument("--rate", type=float, default=30.0, help="frames a second")
    parser.add_argument("--buffer-mib", type=positive, default=128)
    args = parser.parse_args()
    environ = ros_environment()
    os.environ.update(environ)
    with tempfile.TemporaryDirectory() as folder, Children(Path(folder), environ) as children:
        node = children.start("node", "nvila_ros.ros.node", ros_args({"buffer_bytes": args.buffer_mib * MIB}))
        with DemoClient(NODE, children.check, start_s=START_S, answer_s=ANSWER_S) as client:
            client.wait_for_node()
            width, height = args.size
            camera = {"world": 0, "width": width, "height": height, "rate_hz": args.rate}
            children.start("camera", "nvila_ros.ros.camera_publisher", ros_args(camera))
            client.wait_for_frame(CAMERA_S)
            return measure(client, node.process.pid, args)


def measure(client: DemoClient, pid: int, args: argparse.Namespace) -> int:
    """Ask for the given time and report."""
    full_s = 1.5 * args.buffer_mib * MIB / (args.size[0] * args.size[1] * 3 * args.rate)
    client.rest(full_s)
    for index in range(NUM_SETTLING):
        ask(client, index)
    start_s, start_cpu_s, start_frames = time.monotonic(), cpu_s(pid), client.wait_for_counts()["frames_received"]
    replies: list[Answer | NvilaError] = []
    rss: list[tuple[float, float]] = [(0.0, resident_bytes(pid) / MIB)]
    while (passed_s := time.monotonic() - start_s) < args.seconds:
        replies.append(ask(client, len(replies)))
        if passed_s >= rss[-1][0] + args.seconds / 6:
            rss.append((passed_s, resident_bytes(pid) / MIB))
        client.rest(max(0.0, start_s + len(replies) * ASK_EVERY_S - time.monotonic()))
    rss.append((passed_s, resident_bytes(pid) / MIB))
    core_share = (cpu_s(pid) - start_cpu_s) / passed_s
    counts = client.wait_for_counts()
    frames_hz = (counts["frames_received"] - start_frames) / (time.monotonic() - start_s)
    return report(replies, rss, core_share, frames_hz, counts["frames_lost"])


def ask(client: DemoClient, index: int) -> Answer | NvilaError:
    """Ask one question; single frames and clips, service and action take turns."""
    is_clip = index % 2 == 1
    on_piece = (lambda piece: None) if index % 4 > 1 else None
    fields = {"num_frames": 8, "window_s": 2.0} if is_clip else {"num_frames": 1}
    try:
        return client.ask(QUESTIONS[index % len(QUESTIONS)], on_piece, **fields)
    except NvilaError as error:
        return error


def report(
    replies: list[Answer | NvilaError],
    rss: list[tuple[float, float]],
    core_share: float,
    frames_hz: float,
    num_lost: int,
) -> int:
    """Print the table and the JSON line; return the exit code."""
    table = Table("after s", "node's RSS, MiB")
    for passed_s, mib in rss:
        table.add_row(f"{passed_s:.0f}", f"{mib:.0f}")
    Console().print(table)
    growth = max(mib for _, mib in rss[1:]) - rss[0][1]
    answers = [reply for reply in replies if isinstance(reply, Answer)]
    print_json(
        {
            "asked": len(replies),
            "answered": len(answers),
            "frames_hz": round(frames_hz, 2),
            "frames_lost": num_lost,
            "rss_growth_mib": round(growth, 1),
            "core_share": round(core_share, 3),
            "ttft_s_median": round(statistics.median(answer.timings.ttft_s for answer in answers), 4),
            "age_s_median": round(statistics.median(answer.age_s for answer in answers), 4),
        }
    )
    return 1 if len(answers) < len(replies) or growth > GROWTH_MIB else 0


if __name__ == "__main__":
    raise SystemExit(main())
