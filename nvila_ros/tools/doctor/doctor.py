"""`nvila doctor`: what this machine is, and what of the package works on it.

Each backend answers the same questions with the embedded model in a process of its own, and is compared with the
answers of torch in float32; the node answers about a camera over the machine's own middleware. On a machine with
TensorRT and a GPU a plan is compiled and run as well. All of it goes into one JSON file, to attach to a report.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from nvila_ros.files import write_json
from nvila_ros.tools.doctor import machine
from nvila_ros.tools.doctor.trials import Trial, TrialOutcome, run_all
from nvila_ros.tools.options import print_json, wide_console

FAULTS = (TrialOutcome.DIFFERS, TrialOutcome.FAILS)
COLORS = {TrialOutcome.WORKS: "green", TrialOutcome.ABSENT: "dim", **dict.fromkeys(FAULTS, "red")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the verb."""
    parser.add_argument(
        "--out", type=Path, default=Path("nvila_doctor.json"), metavar="FILE", help="report (default: %(default)s)"
    )
    parser.add_argument("--facts", action="store_true", help="describe the machine alone, try nothing")


def run(args: argparse.Namespace) -> int:
    """Examine, print and write the report; 1 where something that is here does not work.

    Raises:
        ConfigError: the report cannot be written.
    """
    console = wide_console()
    facts = machine.describe()
    write_json(args.out, {"facts": facts, "trials": []})  # a file that cannot be written shows before minutes of work
    console.print(facts_table(facts))
    trials: list[Trial] = []
    if not args.facts:
        trials = list(run_all(lambda name: console.print(f"trying {name}", style="dim")))
        console.print(trials_table(trials))
        write_json(args.out, {"facts": facts, "trials": [as_dict(trial) for trial in trials]})
    print_json({"report": str(args.out), **{trial.name: trial.outcome.value for trial in trials}})
    return int(any(trial.outcome in FAULTS for trial in trials))


def as_dict(trial: Trial) -> dict[str, Any]:
    """Return a trial as plain values."""
    return {**asdict(trial), "outcome": trial.outcome.value}


def facts_table(facts: Mapping[str, Mapping[str, str]]) -> Table:
    """Return the facts, a line each."""
    table = Table(show_header=False, box=None)
    for title, section in facts.items():
        for i, (name, text) in enumerate(section.items()):
            table.add_row(f"[bold]{'' if i else title}[/bold]", name, escape(text))
    return table


def trials_table(trials: list[Trial]) -> Table:
    """Return the trials, each with its figures or its cure."""
    table = Table("", "outcome", "", "what to do")
    for trial in trials:
        color = COLORS[trial.outcome]
        table.add_row(trial.name, f"[{color}]{trial.outcome.value}[/{color}]", escape(trial.detail), escape(trial.cure))
    return table
