"""Instructions followed in rooms that training never draws: a model beside a baseline that drives at a coloured blob.

    python -m benchmarks.drive --checkpoint build/nav --tasks 300
    python -m benchmarks.drive --faults 20      # the fault drill, with ROS

Each task runs the drive node's own rules (`nvila_ros.driving`), its guard included, on a simulated robot. Success means
that it said stop with its edge within 0.5 m of the target. Tasks that are done are kept in --work and not run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cv2
from rich.console import Console
from rich.table import Table

from nvila_ros.driving.settings import DriveConfig
from nvila_ros.tools.drive.choosers import BlobChooser, ModelChooser
from nvila_ros.tools.drive.course import Chooser, Course
from nvila_ros.tools.step_progress import StepProgress
from nvila_ros.world.rooms.instructions import eval_task

CONFIG = DriveConfig()
FIGURES = ("is_success", "spl", "collided", "num_steps", "traveled_m")


def run_tasks(name: str, chooser: Chooser, num_tasks: int, path: Path) -> list[dict[str, object]]:
    """Run tasks from 0 on; those that the file holds are read from there."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    path.parent.mkdir(parents=True, exist_ok=True)
    with StepProgress([name]) as progress, path.open("a") as file:
        count = progress.counter(name, num_tasks, len(rows))
        for number in range(len(rows), num_tasks):
            rows.append(_run(number, chooser))
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
            count()
    return rows[:num_tasks]


def _run(number: int, chooser: Chooser) -> dict[str, object]:
    task = eval_task(number)
    outcome = Course(task, chooser, CONFIG, seed=number).run()
    return {
        "task": number,
        "instruction": task.instruction,
        "is_elsewhere": task.is_elsewhere,
        "end": outcome.end.reason.name,
        "is_success": outcome.is_success,
        "spl": outcome.spl,
        "collided": outcome.num_collisions > 0,
        "num_steps": outcome.end.num_steps,
        "traveled_m": float(outcome.end.traveled_m),
    }


def figures(rows: list[dict[str, object]]) -> dict[str, float]:
    """Return the means over tasks, and success by where the target is."""
    means = {name: sum(float(row[name]) for row in rows) / len(rows) for name in FIGURES}  # type: ignore[arg-type]
    for name, is_elsewhere in (("same_room", False), ("next_room", True)):
        part = [row for row in rows if row["is_elsewhere"] is is_elsewhere]
        means[name] = sum(bool(row["is_success"]) for row in part) / max(len(part), 1)
    return means


def main() -> int:
    """Print a table, and last one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="build/nav", help="model to judge (default: %(default)s)")
    parser.add_argument("--tasks", type=int, default=300, help="how many (default: %(default)s)")
    parser.add_argument("--only", choices=("model", "blob"), help="one of the two")
    parser.add_argument("--threads", type=int, default=1, help="of the model (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("build/drive"), help="keeps what is done")
    parser.add_argument("--faults", type=int, default=0, metavar="N", help="run the fault drill instead, N times each")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    if args.faults:
        from benchmarks.drive_faults import drill

        return drill(args.faults)
    found = {}
    if args.only != "model":
        found["blob"] = figures(run_tasks("blob", BlobChooser(), args.tasks, args.work / "blob.jsonl"))
    if args.only != "blob":
        chooser = ModelChooser(args.checkpoint, threads=args.threads)
        path = args.work / f"{Path(args.checkpoint).name}.jsonl"
        found["model"] = figures(run_tasks("model", chooser, args.tasks, path))
    table = Table("", *next(iter(found.values())))
    for name, means in found.items():
        table.add_row(name, *(f"{value:.3f}" for value in means.values()))
    Console(stderr=False).print(table)
    print(json.dumps({"tasks": args.tasks, "checkpoint": args.checkpoint, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
