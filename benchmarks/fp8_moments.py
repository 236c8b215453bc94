"""How well a second moment in FP8 follows gradients that fade: codes rounded by chance against the nearest ones.

Groups of 128 gradients whose deviations span a factor of 30; after 1,000 steps every second one fades to a tenth.
Prints what the moments are, in times of those in float32 (geometric means), and, last, one JSON line.

    .venv/bin/python -m benchmarks.fp8_moments
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from nvila_ros.tools.options import positive, print_json, wide_console
from nvila_ros.training.fp8.expansion import STATE_GROUP, contract, expand

BETAS = (0.98, 0.99, 0.999)
FADES_AT, NUM_STEPS = 1000, 3000


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=positive, default=16, metavar="N", help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [{"beta": beta, **follow(beta, args.groups)} for beta in BETAS]
    table = Table("beta", "steps", *(f"{who}, {how}" for how in ("chance", "nearest") for who in ("faded", "others")))
    for row in rows:
        for steps, ratios in row["ratios"].items():
            table.add_row(str(row["beta"]), str(steps), *(f"{ratio:.2f}" for ratio in ratios))
    wide_console().print(table)
    print_json({"benchmark": "fp8_moments", "groups": args.groups, "rows": rows})
    return 0


def follow(beta: float, num_groups: int) -> dict[str, Any]:
    """Return, by number of steps, the moments in times of what they should be."""
    chance = torch.Generator().manual_seed(0)
    deviation = torch.logspace(math.log10(1 / 30), 0, STATE_GROUP)
    exact, by_chance, nearest = (torch.zeros(num_groups, STATE_GROUP) for _ in range(3))
    ratios: dict[int, list[float]] = {}
    for step in range(1, NUM_STEPS + 1):
        if step == FADES_AT + 1:
            deviation[::2] /= 10
        square = (torch.randn(exact.shape, generator=chance) * deviation) ** 2
        exact = beta * exact + (1 - beta) * square
        by_chance = beta * contract(expand(by_chance, chance)) + (1 - beta) * square
        nearest = beta * contract(expand(nearest)) + (1 - beta) * square
        if step % FADES_AT == 0:
            ratios[step] = [ratio for moment in (by_chance, nearest) for ratio in halves(moment, exact)]
    return {"ratios": ratios}


def halves(moment: Tensor, exact: Tensor) -> list[float]:
    """Return the mean ratio of those that fade and of the others."""
    logs = (moment / exact).log()
    return [logs[:, start::2].mean().exp().item() for start in (0, 1)]


if __name__ == "__main__":
    raise SystemExit(main())
