"""How much memory `nvila build` takes, on random checkpoints of a published variant's shapes.

Writes a checkpoint in bf16 with as many layers as asked for and the whole embeddings, then quantizes it by a recipe for
CPUs in a process of its own, whose largest resident memory is what counts. A build holds one layer at a time, so the
peak is that of any number of layers; the time grows with them. Prints a table and, last, one JSON line.

    .venv/bin/python -m benchmarks.build_memory --variant NVILA-Lite-2B --layers 2
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.load import write_random
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.variants import VARIANTS
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.options import positive, print_json

GB = 1e9
NUM_IMAGES = 4


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", choices=VARIANTS, default="NVILA-Lite-2B")
    parser.add_argument("--layers", type=positive, default=2, help="of the language model (default: %(default)s)")
    parser.add_argument("--tower-layers", type=positive, default=2, help="of the tower (default: %(default)s)")
    parser.add_argument("--samples", type=positive, default=NUM_IMAGES, help="calibrated on (default: %(default)s)")
    args = parser.parse_args()
    spec = VARIANTS[args.variant].spec
    decoder = dataclasses.replace(spec.decoder, num_layers=args.layers)
    vision = dataclasses.replace(spec.vision, num_live_layers=args.tower_layers, num_layers=args.tower_layers + 1)
    spec = dataclasses.replace(spec, decoder=decoder, vision=vision)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random(spec, folder / "checkpoint")
        copy_tokenizer(folder / "checkpoint" / "llm")
        write_images(folder / "media", args.samples)
        recipe = {"model": args.variant, "device": "cpu", "calibration": {"num_samples": args.samples}}
        (folder / "memory.yaml").write_text(yaml.safe_dump(recipe))
        peak_bytes, seconds = build(folder)
        size = sum(path.stat().st_size for path in (folder / "build").rglob("*") if path.is_file())
    table = Table("variant", "decoder layers", "tower layers", "peak GB", "seconds", "build GB")
    cells = (f"{peak_bytes / GB:.2f}", f"{seconds:.0f}", f"{size / GB:.2f}")
    table.add_row(args.variant, str(args.layers), str(args.tower_layers), *cells)
    Console().print(table)
    figures = {"variant": args.variant, "layers": args.layers, "tower_layers": args.tower_layers}
    print_json(figures | {"peak_bytes": peak_bytes, "seconds": round(seconds, 1), "build_bytes": size})
    return 0


def build(folder: Path) -> tuple[int, float]:
    """Run `nvila build`; return the largest resident memory of its process, in bytes, and the seconds."""
    command = [sys.executable, "-m", "nvila_ros.tools.cli", "build", str(folder / "memory.yaml")]
    command += ["--checkpoint", str(folder / "checkpoint"), "--media", str(folder / "media")]
    start = time.monotonic()
    process = subprocess.Popen([*command, "--out", str(folder / "build")], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"nvila build failed with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss * 1024, time.monotonic() - start


def copy_tokenizer(folder: Path) -> None:
    """Give a checkpoint nvila-tiny's tokenizer."""
    for path in open_checkpoint(find_checkpoint("nvila-tiny")).tokenizer_folder.iterdir():
        if path.suffix in (".json", ".txt") and path.name != "config.json" and "index" not in path.name:
            shutil.copy(path, folder)


def write_images(folder: Path, count: int) -> None:
    """Write images of noise."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.png"), rng.integers(0, 256, (480, 640, 3), np.uint8))


if __name__ == "__main__":
    sys.exit(main())
