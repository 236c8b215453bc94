"""The score of `make mutation`: how many mutants of each module the tests killed, and the names of the others.

mutmut changes one operator, number, text, argument or value at a time and runs the tests that reach it; a mutant is
killed when one of them fails or runs out of time. Reads the results that mutmut left in mutants/, also of a run that
was interrupted. `.venv/bin/mutmut show NAME` prints the change that a mutant is.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from mutmut.stats import status_by_exit_code
from rich.console import Console
from rich.table import Table

KILLED = ("killed", "timeout")
UNKNOWN = ("not checked", "check was interrupted by user")


def read_results(folder: Path) -> dict[str, dict[str, str]]:
    """Return, for each module, the status of each of its mutants."""
    results = {}
    for path in sorted(folder.rglob("*.py.meta")):
        exit_codes: dict[str, int | None] = json.loads(path.read_text())["exit_code_by_key"]
        if exit_codes:
            module = str(path.relative_to(folder).with_suffix(""))
            results[module] = {name: status_by_exit_code[code] for name, code in exit_codes.items()}
    return results


def count(statuses: dict[str, str]) -> dict[str, int]:
    """Return how many mutants there are, were killed, survived, and were not tried yet."""
    counts = Counter(statuses.values())
    killed, unknown = sum(counts[name] for name in KILLED), sum(counts[name] for name in UNKNOWN)
    num_all = len(statuses)
    return {"mutants": num_all, "killed": killed, "survived": num_all - killed - unknown, "not_tried": unknown}


def print_scores(scores: dict[str, dict[str, int]], console: Console) -> None:
    """Print a row for each module and one for all."""
    table = Table("module", "mutants", "killed", "survived", "not tried", "killed of tried")
    for module, score in scores.items():
        tried = score["killed"] + score["survived"]
        table.add_row(
            module.removeprefix("nvila_ros/"),
            *map(str, score.values()),
            f"{score['killed'] / tried:.1%}" if tried else "",
        )
    console.print(table)


def main() -> None:
    """Print the survivors, the table, and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("mutants"), help="what mutmut wrote (default: mutants)")
    args = parser.parse_args()
    results = read_results(args.folder)
    if not results:
        parser.error(f"{args.folder} holds no results; run: make mutation")
    for statuses in results.values():
        for name, status in statuses.items():
            if status not in KILLED + UNKNOWN:
                print(f"{status}: {name}")
    scores = {module: count(statuses) for module, statuses in results.items()}
    everything = count({name: status for statuses in results.values() for name, status in statuses.items()})
    print_scores(scores | {"all": everything}, Console())
    print(json.dumps(scores | {"all": everything}))


if __name__ == "__main__":
    main()
