"""How long `nvila build` takes for published models on this machine, as it says itself before it starts.

Layers of each kind are timed, not builds: random weights need no checkpoint. Prints a table and, last, one JSON line.

    .venv/bin/python -m benchmarks.build_time nvila-lite-2b.cpu nvila-8b.agx-orin
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

import torch
from rich.console import Console
from rich.table import Table

from nvila_ros.builds.forecast import forecast_build
from nvila_ros.builds.recipes import read_recipe
from nvila_ros.models.variants import VARIANTS
from nvila_ros.tools.options import print_json

RECIPES = ("nvila-lite-2b.cpu", "nvila-8b.agx-orin")
STEPS = ("calibration", "tower", "decoder")


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES, metavar="RECIPE", help="of a published model")
    args = parser.parse_args()
    table = Table("recipe", *(f"{step}, min" for step in STEPS), "in all, min", "threads")
    figures = {}
    for name in args.recipes:
        recipe = read_recipe(name)
        taken = forecast_build(recipe, VARIANTS[recipe.model].spec)
        minutes = [f"{getattr(taken, step) / 60:.0f}" for step in STEPS]
        table.add_row(name, *minutes, f"{taken.total / 60:.0f}", str(torch.get_num_threads()))
        figures[name] = dataclasses.asdict(taken) | {"total": taken.total}
    Console().print(table)
    print_json({"seconds": figures, "threads": torch.get_num_threads()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
