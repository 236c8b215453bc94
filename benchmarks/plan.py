"""Fit the roofline of `nvila plan` on published measurements, and print how far it is off on each of them.

Prints a table and, last, one JSON line. Exit 1 if a row of the nearest engine is off by more than 15 percent, or the
shares in `nvila_ros/builds/planning.py` are not those fitted here.

    .venv/bin/python -m benchmarks.plan
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nvila_ros.builds.planning import FITTED, Shares
from nvila_ros.builds.published import EDGE, ROWS, TINYCHAT, predict
from nvila_ros.tools.options import print_json

WORST = 0.15


def fit() -> Shares:
    """Return the shares with the least squared logarithmic error, each group of rows by itself, on a grid."""
    best = search("decode", lambda a, b: Shares(a, 1, 1, 1, b), np.arange(0.5, 1.001, 0.01), np.arange(0, 200, 2))
    prefill = search("prefill", lambda a, b: dataclasses.replace(best, prefill=a), np.arange(0.1, 1, 0.01), [0])
    vision = search(
        "vision", lambda a, b: dataclasses.replace(best, vision=a, int8_gain=b), *[np.arange(0.1, 2, 0.01)] * 2
    )
    return dataclasses.replace(vision, prefill=prefill.prefill)


def search(
    what: str, make: Callable[[float, float], Shares], first: Sequence[float], second: Sequence[float]
) -> Shares:
    """Return the best shares of a grid for one kind of row."""
    rows = [row for row in ROWS if row.what == what and row.source != TINYCHAT]
    options = [make(round(float(a), 2), round(float(b), 2)) for a in first for b in second]
    return min(options, key=lambda s: sum(np.log(predict(row, s) / row.value) ** 2 for row in rows))


def main() -> int:
    """Run the benchmark; returns the exit code."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    shares = fit()
    table = Table("source", "device", "model", "what", "published", "forecast", "error", box=SIMPLE_HEAD)
    errors: dict[str, list[float]] = {}
    for row in ROWS:
        got = predict(row, shares)
        errors.setdefault(row.source, []).append(got / row.value - 1)
        what = f"{row.what} {'tok/s' if row.what == 'decode' else 'ms'}"
        cells = (f"{row.value:.1f}", f"{got:.1f}", f"{got / row.value - 1:+.0%}")
        table.add_row(row.source, row.device, row.model, what, *cells)
    Console().print(table)
    print(f"fitted: {shares}")
    is_current = shares == FITTED
    if not is_current:
        print(f"nvila_ros/builds/planning.py holds {FITTED}")
    worst = max(abs(error) for error in errors[EDGE])
    mean = {source: round(float(np.mean(np.abs(each))), 3) for source, each in errors.items()}
    print_json({"worst_fitted": round(worst, 3), "mean_error": mean, "is_current": is_current})
    return 0 if worst <= WORST and is_current else 1


if __name__ == "__main__":
    sys.exit(main())
