"""`nvila bench`: the speed of a model on this machine, and its share of what the memory bandwidth allows.

In: a checkpoint or build. Out: a table of medians with their range and, last, one JSON line. The model is measured in a
process of its own (`speeds.py`); before and after, this process measures the memory bandwidth. A decode step reads
every weight once, so the bandwidth is the roofline of decoding; a model that fits into the CPU's caches may exceed it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nvila_ros.errors import BackendError, ConfigError
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.options import add_model_options, positive, print_json, size, wide_console
from nvila_ros.tools.speeds import GPU_BACKENDS, BenchSettings

READ_BYTES = 1 << 28  # of each thread: beyond any cache of a core
NUM_READS = 5
MAX_CLIP_BYTES = 4 << 30
GB = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("model", metavar="MODEL", help="folder, or name of an embedded checkpoint or of a build")
    add_model_options(parser)
    parser.add_argument("--image", type=size, default=(1280, 720), metavar="WxH", help="default: 1280x720")
    parser.add_argument("--frames", type=positive, default=8, metavar="N", help="frames of a clip (default: 8)")
    parser.add_argument("--prompt", type=positive, default=512, metavar="N", help="prefilled tokens (default: 512)")
    parser.add_argument("--tokens", type=positive, default=32, metavar="N", help="decode steps (default: 32)")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="of every figure (default: 5)")
    parser.add_argument("--json", action="store_true", help="print the JSON object alone")


def run(args: argparse.Namespace) -> int:
    """Measure and print.

    Raises:
        NvilaError: there is no such model or backend, or the model does not load.
    """
    find_checkpoint(args.model)
    check_clip(args.image, args.frames)
    fields = ("model", "backend", "precision", "threads", "image", "frames", "prompt", "tokens", "repeats")
    settings = BenchSettings(**{name: getattr(args, name) for name in fields})
    threads = args.threads or len(os.sched_getaffinity(0))
    read_s = read_bandwidth(threads)
    figures = measure_apart(settings)
    figures = {name: figures.pop(name) for name in ("model", "backend", "precision")} | {"threads": threads} | figures
    if figures["backend"] not in GPU_BACKENDS:  # whose memory is not what these threads read
        read_s = max(read_s, read_bandwidth(threads))
        roofline = figures["step_bytes"] * figures["decode_tok_s"]["median"] / read_s
        figures |= {"read_bytes_s": read_s, "roofline": roofline}
    if not args.json:
        wide_console().print(as_table(figures))
    print_json(figures)
    return 0


def check_clip(image: tuple[int, int], num_frames: int) -> None:
    """Check that a clip of noise fits into memory.

    Raises:
        ConfigError: it does not.
    """
    num_bytes = 3 * image[0] * image[1] * num_frames
    if num_bytes > MAX_CLIP_BYTES:
        raise ConfigError(
            f"--frames of --image must take at most {MAX_CLIP_BYTES / GB:.1f} GB, got {num_frames} of "
            f"{image[0]}x{image[1]}, which take {num_bytes / GB:.1f}; lower one of them"
        )


def measure_apart(settings: BenchSettings) -> dict[str, Any]:
    """Return what `speeds.measure` says in a fresh process.

    Raises:
        BackendError: the model did not load, or its process ended before it was measured.
    """
    command = [sys.executable, "-m", "nvila_ros.tools.speeds", json.dumps(asdict(settings))]
    console = Console(stderr=True, highlight=False)
    with (
        console.status("starting") as status,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child,
    ):
        assert child.stdout is not None
        assert child.stderr is not None
        lines: list[str] = []
        for line in child.stderr:
            lines = [*lines[-3:], line.strip()]
            status.update(f"{settings.model}: {line.strip()}")
        out = child.stdout.read()
    if child.returncode != 0:
        raise BackendError(f"measuring {settings.model} ended with code {child.returncode}; its last lines: {lines}")
    figures = json.loads(out.splitlines()[-1])
    if "error" in figures:
        raise BackendError(figures["error"])
    return figures


def read_bandwidth(num_threads: int) -> float:
    """Return the highest bytes per second that all threads together read, each from its own memory."""
    arrays = [np.ones(READ_BYTES // 8, np.uint64) for _ in range(num_threads)]

    def read_all() -> float:
        # Of numpy's reductions this one does the least beside reading.
        readers = [threading.Thread(target=np.bitwise_or.reduce, args=(array,)) for array in arrays]
        start = time.perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return time.perf_counter() - start

    return num_threads * READ_BYTES / min(read_all() for _ in range(NUM_READS))


def as_table(figures: Mapping[str, Any]) -> Table:
    """Return the figures as a table: median, and lowest to highest where it was repeated."""
    title = f"{figures['model']}, {figures['backend']} {figures['precision']}, {figures['threads']} threads"
    table = Table("what", "median", "low to high", box=SIMPLE_HEAD, title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    image, clip = (f"{figures[f'{name}_tokens']} tokens" for name in ("image", "clip"))
    for name, key, factor, digits in (
        ("vision tower, ms a tile", "vision_s", 1e3, 1),
        (f"prefill of {figures['prompt_tokens']}, tokens/s", "prefill_tok_s", 1, 1),
        ("decode, tokens/s", "decode_tok_s", 1, 2),
        (f"first token about an image ({image}), ms", "image_ttft_s", 1e3, 1),
        (f"first token about a clip of {figures['clip_frames']} ({clip}), ms", "clip_ttft_s", 1e3, 1),
    ):
        median, low, high = (f"{factor * figures[key][each]:,.{digits}f}" for each in ("median", "low", "high"))
        table.add_row(name, median, f"{low} to {high}")
    rows = {
        "loading, s": f"{figures['load_s']:.2f}",
        "memory kept, MB": f"{figures['kept_bytes'] / 1e6:,.0f}",
        "memory at its peak, MB": f"{figures['peak_bytes'] / 1e6:,.0f}",
        "read for each decoded token, MB": f"{figures['step_bytes'] / 1e6:,.1f}",
    }
    if "roofline" in figures:
        rows["memory can be read at, GB/s"] = f"{figures['read_bytes_s'] / GB:.1f}"
        rows["decode reads at, of that"] = f"{figures['roofline']:.0%}"
    for name, text in rows.items():
        table.add_row(name, text, "")
    return table
