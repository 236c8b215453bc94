"""What compiling a model of full size takes, ahead of time and without a GPU: TensorRT-RTX on random weights.

Writes a sealed build of a published model's shapes, its tower in eight bits and its language model in four, and
compiles it by the function that `nvila build` uses, each form of the decoder's graph in a process of its own. Random
weights cost what trained ones do; nothing is computed with them. Prints a table and, last, one JSON line.

    .venv/bin/python -m benchmarks.build_full_size --target SM89
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from benchmarks.process_usage import peak_resident_bytes, reset_peak
from nvila_ros.builds.recipes import Recipe, read_recipe
from nvila_ros.export.forms import TRT_BASE, TRT_KV
from nvila_ros.models.build import to_tensors, write_manifest
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight
from nvila_ros.models.shapes import expected_shapes
from nvila_ros.models.spec import ModelSpec
from nvila_ros.models.variants import VARIANTS
from nvila_ros.runtime.tensorrt.compile import CompileJob, compile_plans, limits_of
from nvila_ros.runtime.tensorrt.machine import name_machine
from nvila_ros.tools.options import print_json

FORMS = {"append": TRT_BASE, "in_place": TRT_KV}
SHARD_BYTES = 1 << 28
GROUP = 128


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--recipe", default="nvila-lite-2b.rtx-4090", help="of a published model (default: %(default)s)"
    )
    parser.add_argument("--target", default="SM89", metavar="SM", help="GPU to compile for (default: %(default)s)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="of the decoder's graph")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder, removed afterwards)")
    args = parser.parse_args()
    recipe = read_recipe(args.recipe)
    spec = VARIANTS[recipe.model].spec
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        started = time.perf_counter()
        write_random_build(spec, recipe, Path(folder) / "build")
        made_s = time.perf_counter() - started
        rows = [
            row for form in args.forms for row in in_process(Path(folder) / "build", recipe, spec, args.target, form)
        ]
        weights = sum(path.stat().st_size for path in (Path(folder) / "build").glob("*.safetensors"))
    _, machine = name_machine(args.target)
    Console(highlight=False, width=120).print(as_table(rows))
    print_json(
        {
            "benchmark": "build_full_size",
            "model": recipe.model,
            "machine": str(machine),
            "weights_bytes": weights,
            "made_s": round(made_s, 1),
            "plans": rows,
        }
    )
    return 0


def in_process(folder: Path, recipe: Recipe, spec: ModelSpec, target: str, form: str) -> list[dict[str, Any]]:
    """Compile in a fresh process, whose peak of memory is no other's."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(compile_form, folder, recipe, spec, target, form).result()


def compile_form(folder: Path, recipe: Recipe, spec: ModelSpec, target: str, form: str) -> list[dict[str, Any]]:
    """Compile every part for one form of the decoder's graph, and return a row for each and one for all."""
    shutil.rmtree(folder / "plans", ignore_errors=True)
    trt, machine = name_machine(target)
    peaks_of = PartPeaks()
    limits = limits_of(spec, recipe.limits)
    job = CompileJob(trt=trt, machine=machine, form=FORMS[form], limits=limits, on_progress=peaks_of.on_progress)
    started = time.perf_counter()
    done = compile_plans(folder, job, dataclasses.asdict(recipe))
    all_s = time.perf_counter() - started
    peaks = {**peaks_of.bytes_by_part, list(done)[-1]: peak_resident_bytes()}
    drawn = {"form": form, "part": "all, with drawing", "seconds": round(all_s, 1), "peak_bytes": max(peaks.values())}
    return [
        *(
            {
                "form": form,
                "part": part,
                "seconds": record.build_s,
                "peak_bytes": peaks[part],
                "plan_bytes": record.digest["bytes"],
                "findings": record.findings,
            }
            for part, record in done.items()
        ),
        drawn | {"plan_bytes": sum(record.digest["bytes"] for record in done.values()), "findings": ()},
    ]


class PartPeaks:
    """The peak of resident memory while each part is built.

    Attributes:
        bytes_by_part: of each part that was built before the one that is being built.
    """

    def __init__(self) -> None:
        self.bytes_by_part: dict[str, int] = {"drawing": 0}
        self._part = "drawing"

    def on_progress(self, part: str, phase: str, share: float) -> None:
        """Take the peak where one part ends and the next begins."""
        if part != self._part:
            self.bytes_by_part[self._part] = peak_resident_bytes()
            reset_peak()
            self._part = part


def write_random_build(spec: ModelSpec, recipe: Recipe, folder: Path) -> None:
    """Write a build with every tensor of the model's shapes, quantized as the recipe says, and no tokenizer."""
    folder.mkdir()
    tensors: dict[str, np.ndarray] = {}
    count = 0
    for key, weight in random_weights(spec):
        tensors |= to_tensors(key, weight)
        if sum(array.nbytes for array in tensors.values()) > SHARD_BYTES:
            save_file(tensors, folder / f"random-{(count := count + 1):05}.safetensors")
            tensors = {}
    save_file(tensors, folder / f"random-{count + 1:05}.safetensors")
    write_manifest(folder, spec, "w8a8+w4a16", dataclasses.asdict(recipe), "")


def random_weights(spec: ModelSpec) -> Iterator[tuple[str, Weight]]:
    """Yield a tensor at a time."""
    rng = np.random.default_rng(0)
    for key, shape in expected_shapes(spec).items():
        if "encoder.layers" in key and len(shape) == 2:
            scale = rng.uniform(1e-3, 2e-3, shape[0]).astype(np.float32)
            yield key, Int8Weight(rng.integers(-127, 128, shape[::-1], np.int8), scale, 0.05)
        elif key.startswith("llm.model.layers") and len(shape) == 2:
            scale = rng.uniform(1e-3, 2e-3, (shape[1] // GROUP, shape[0])).astype(np.float32)
            yield key, Int4Weight(rng.integers(-8, 8, shape[::-1], np.int8), scale)
        else:
            array = rng.standard_normal(shape, np.float32) * np.float32(0.02)
            yield key, array.astype(np.float16) if len(shape) > 1 else array


def as_table(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table."""
    table = Table("form", "part", "seconds", "peak memory", "plan", "kernels")
    for row in rows:
        sizes = (f"{row[key] / 1e9:.2f} GB" for key in ("peak_bytes", "plan_bytes"))
        table.add_row(
            row["form"], row["part"], f"{row['seconds']:.1f}", *sizes, "; ".join(row["findings"]) or "as drawn"
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
