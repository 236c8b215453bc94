"""How much memory loading a checkpoint takes beside what is kept, on random weights of a published variant's shapes.

Writes the checkpoint in bf16, a shard of 1 GiB at a time, then loads it in fresh processes: as plain arrays, by the
torch engine and by the ONNX Runtime engine. Prints a table and, last, one JSON line. The ratio is the peak of resident
memory over what was resident before, divided by the bytes of the weights that are kept (float32). Exit 1 if the ratio
of the plain arrays is above 1.3.

    .venv/bin/python -m benchmarks.load --variant NVILA-Lite-2B
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import ml_dtypes
import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import save_file

from benchmarks.process_usage import peak_resident_bytes, reset_peak, resident_bytes
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.shapes import expected_shapes
from nvila_ros.models.spec import ModelSpec
from nvila_ros.models.variants import VARIANTS
from nvila_ros.runtime.loading import load_engine
from nvila_ros.tools.options import positive, print_json
from nvila_ros.training.save import part_configs, write_json

GIB = 1 << 30
MAX_RATIO = 1.3
SHARD_BYTES = GIB
ADDED = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "[BOS]": 3, "[PAD]": 4}
ENGINES = {"torch": "nvila_ros.runtime.torch_engine", "onnxruntime": "nvila_ros.runtime.onnxruntime.engine"}
LOADERS = ("arrays", *ENGINES)


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=VARIANTS, default="NVILA-Lite-2B")
    parser.add_argument("--layers", type=positive, default=0, help="of the language model (default: all)")
    parser.add_argument("--loaders", nargs="+", choices=LOADERS, default=LOADERS)
    args = parser.parse_args()
    spec = VARIANTS[args.variant].spec
    if args.layers:
        spec = dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, num_layers=args.layers))
    kept = 4 * sum(map(math.prod, expected_shapes(spec).values()))
    with tempfile.TemporaryDirectory() as folder:
        write_random(spec, Path(folder))
        figures = {loader: measure(loader, folder) for loader in args.loaders}
    ratios = {loader: (each["peak"] - each["before"]) / kept for loader, each in figures.items()}
    table = Table("loader", "kept GiB", "peak GiB", "after GiB", "peak / kept", "s", title=args.variant)
    for loader, each in figures.items():
        peak, after = ((each[key] - each["before"]) / GIB for key in ("peak", "after"))
        row = (f"{kept / GIB:.2f}", f"{peak:.2f}", f"{after:.2f}", f"{ratios[loader]:.3f}", f"{each['seconds']:.1f}")
        table.add_row(loader, *row)
    Console().print(table)
    seconds = {f"{loader}_s": round(each["seconds"], 1) for loader, each in figures.items()}
    rounded = {loader: round(ratio, 3) for loader, ratio in ratios.items()}
    print_json({"variant": args.variant, "kept_bytes": kept, **rounded, **seconds})
    return 1 if ratios.get("arrays", 0.0) > MAX_RATIO else 0


def measure(loader: str, folder: str) -> dict[str, float]:
    """Load in a fresh process and return its resident bytes before, at the peak and after, and the seconds."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(load, loader, folder).result()


def load(loader: str, folder: str) -> dict[str, float]:
    """Load a checkpoint, once all that loads it is imported."""
    if loader in ENGINES:
        importlib.import_module(ENGINES[loader])
    checkpoint = open_checkpoint(folder)
    reset_peak()
    before, started_s = resident_bytes(), time.monotonic()
    kept = checkpoint.load() if loader == "arrays" else load_engine(checkpoint, loader)
    seconds = time.monotonic() - started_s
    found = {"before": before, "peak": peak_resident_bytes(), "after": resident_bytes(), "seconds": seconds}
    del kept  # held until the memory was read
    return found


def write_random(spec: ModelSpec, folder: Path) -> None:
    """Write a checkpoint of random weights in the original layout, never holding more than one shard."""
    for name, config in part_configs(spec, ADDED).items():
        write_json(folder / name, config)
    noise = np.random.default_rng(0).normal(0, 0.02, 1 << 20).astype(ml_dtypes.bfloat16)
    by_part: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in expected_shapes(spec).items():
        part, name = key.split(".", 1)
        by_part.setdefault(part, {})[name] = shape
    for part, shapes in by_part.items():
        shards: list[dict[str, tuple[int, ...]]] = [{}]
        for name, shape in shapes.items():
            if 2 * sum(map(math.prod, shards[-1].values())) > SHARD_BYTES:
                shards.append({})
            shards[-1][name] = shape
        index = {}
        for i, shard in enumerate(shards, 1):
            file = f"model-{i:05}-of-{len(shards):05}.safetensors"
            save_file({name: np.resize(noise, shape) for name, shape in shard.items()}, folder / part / file)
            index |= dict.fromkeys(shard, file)
        write_json(folder / part / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


if __name__ == "__main__":
    sys.exit(main())
