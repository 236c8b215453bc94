"""`nvila drive`: a simulated robot, the node that answers and the node that drives, sent to things in rooms.

Each of the tasks, by default ten, is a house of its own. At the end come a table, a picture of the ways from above, an
animation of one of them, and a JSON line. Every process that was started is stopped again, whatever happens.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nvila_ros.errors import ConfigError, NvilaError
from nvila_ros.ros.camera_publisher import ros_args
from nvila_ros.ros.drive_session import DriveRecord, DriveSession
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.demo.graph import open_console, own_graph
from nvila_ros.tools.demo.subprocesses import ChildError, Children
from nvila_ros.tools.drive.maps import draw_house, draw_sheet, draw_step, draw_track, save_animation
from nvila_ros.tools.options import add_model_options, positive, print_json, whole
from nvila_ros.tools.picture import save_picture
from nvila_ros.world.rooms.instructions import Task, eval_task

START_S, DRIVE_S = 90.0, 240.0
PATIENT = {"watch_s": 0.5, "max_age_s": 2.0}
"""Beside four processes on two cores frames may come later than on a robot."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument(
        "--checkpoint", default="nvila-tiny-nav", metavar="CKPT", help="model that drives (default: %(default)s)"
    )
    add_model_options(parser)
    parser.add_argument("--tasks", type=positive, default=10, metavar="N", help="how many (default: 10)")
    parser.add_argument("--first", type=whole, default=0, metavar="N", help="number of the first (default: 0)")
    parser.add_argument("--max-steps", type=positive, default=40, metavar="N", help="of a task (default: 40)")
    parser.add_argument("--out", type=Path, default=Path("nvila_drive.png"), metavar="FILE", help="the ways from above")
    parser.add_argument("--animation", type=Path, metavar="FILE", help="default: as --out, with .webp")
    parser.add_argument("--quiet", action="store_true", help="print the JSON line alone")


def run(args: argparse.Namespace) -> int:
    """Drive all tasks and report them; returns 0 if every drive ended with a reason of its own."""
    find_checkpoint(args.checkpoint)
    if args.out.suffix.lower() not in (".png", ".jpg") or not args.out.absolute().parent.is_dir():
        raise ConfigError(f"--out must be a file .png or .jpg in a folder that exists, got {args.out}")
    console = open_console(args.quiet)
    start_s = time.monotonic()
    with own_graph("nvila_drive") as (_, children):
        try:
            driven = _drive_all(args, children, console)
        except (ChildError, NvilaError) as error:
            Console(stderr=True, highlight=False).print(f"[red]nvila drive: error: {escape(str(error))}")
            return 1
    animation = args.animation or args.out.with_suffix(".webp")
    _draw(args.out, animation, driven)
    console.print(_table(driven))
    console.print(f"the ways from above: {args.out}; one of them step by step: {animation}")
    console.print(f"{time.monotonic() - start_s:.0f} s in all")
    print_json(_figures(driven))
    return 0


def _drive_all(args: argparse.Namespace, children: Children, console: Console) -> list[tuple[Task, DriveRecord]]:
    model = {"model": args.checkpoint, "backend": args.backend, "threads": args.threads, "past_s": 300.0}
    drive = {"armed": True, "motion": "cmd_vel", "lock_topic": "lock", "max_steps": args.max_steps, **PATIENT}
    children.start("nvila_sim", "nvila_ros.ros.sim", ros_args({"task": args.first}))
    children.start("nvila_node", "nvila_ros.ros.node", ros_args(model))
    children.start("nvila_drive", "nvila_ros.ros.drive", ros_args(drive))
    driven = []
    with DriveSession(children.check, START_S) as session:
        with console.status("starting the robot, the node and the drive"):
            session.wait_until_ready()
        for number in range(args.first, args.first + args.tasks):
            task = eval_task(number)
            session.begin(number)
            session.rest(1.2)  # the camera has shown the new house for a while
            record = session.finish(session.send(task.instruction), DRIVE_S)
            driven.append((task, record))
            said = "arrived" if _has_arrived(record) else record.result.end_reason_name
            console.print(f"  {escape(task.instruction)} [bold]{said}[/] after {record.result.num_steps} steps")
    return driven


def _has_arrived(record: DriveRecord) -> bool:
    return bool(record.result.end_reason_name == "STOPPED" and record.truth["is_done"])


def _spl(task: Task, record: DriveRecord) -> float:
    return task.shortest_m / max(task.shortest_m, record.truth["traveled_m"]) if _has_arrived(record) else 0.0


def _table(driven: list[tuple[Task, DriveRecord]]) -> Table:
    table = Table("instruction", "ended", "arrived", "steps", "way", "shortest", "touched")
    for task, record in driven:
        result, truth = record.result, record.truth
        way = f"{truth['traveled_m']:.1f} m"
        arrived = "yes" if _has_arrived(record) else "no"
        shortest, steps = f"{task.shortest_m:.1f} m", str(result.num_steps)
        table.add_row(task.instruction, result.end_reason_name, arrived, steps, way, shortest, str(truth["collisions"]))
    return table


def _figures(driven: list[tuple[Task, DriveRecord]]) -> dict[str, object]:
    num = len(driven)
    return {
        "tasks": num,
        "arrived": sum(_has_arrived(record) for _, record in driven),
        "spl": sum(_spl(*each) for each in driven) / num,
        "collided": sum(record.truth["collisions"] > 0 for _, record in driven),
        "ends": [record.result.end_reason_name for _, record in driven],
        "steps": sum(record.result.num_steps for _, record in driven),
    }


def _draw(path: Path, animation: Path, driven: list[tuple[Task, DriveRecord]]) -> None:
    cells = []
    for task, record in driven:
        plan, drawing = draw_house(task)
        draw_track(plan, drawing, record.track, is_success=_has_arrived(record))
        result = record.result
        note = f"{result.end_reason_name.lower()} after {result.num_steps} steps, {record.truth['traveled_m']:.1f} m"
        cells.append((task.instruction, note, plan))
    save_picture(path, draw_sheet(cells))
    best = max(driven, key=lambda each: (_has_arrived(each[1]), each[0].is_elsewhere, -abs(len(each[1].steps) - 14)))
    save_animation(animation, list(_steps(*best)))


def _steps(task: Task, record: DriveRecord) -> Iterator[np.ndarray]:
    """Yield a frame for each step, with the way up to it."""
    for step, picture in record.steps:
        if picture is None:
            continue
        plan, drawing = draw_house(task)
        near = min(range(len(record.track)), key=lambda k: _off(record.track[k], step))
        draw_track(plan, drawing, record.track[: near + 1], is_success=True)
        title = f'"{task.instruction}"  step {step.index + 1}'
        yield draw_step(picture, plan, title, step.action, list(step.probabilities))


def _off(pose: tuple[float, float, float], step: Any) -> float:
    return abs(pose[0] - step.x) + abs(pose[1] - step.y) + 0.2 * abs(pose[2] - step.yaw)
