"""What reading questions' frames out of ROS bags costs: one pass over a topic, then each window; and what damage does.

Two mcap bags of 720p at 30 Hz are written, one of JPEG and one of raw pixels. Then small bags are cut anywhere or have
bytes flipped, and each must be read or refused by name. Prints a table and, last, one JSON line.

    .venv/bin/python -m benchmarks.bags --damaged 3200
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from nvila_ros.errors import NvilaError
from nvila_ros.tools.options import positive, print_json
from nvila_ros.video.bags import COMPRESSED_TYPE, IMAGE_TYPE, index_topic, read_frames
from nvila_ros.world.rendering import render
from nvila_ros.world.scene_sampler import sample_scene

WIDTH, HEIGHT, RATE_HZ = 1280, 720, 30
NUM_PICTURES = 16  # drawn, and sent in turns
NUM_WINDOWS, WINDOW_S, NUM_FRAMES = 10, 2.0, 8
T0_NS = 1_700_000_000_000_000_000
TYPES = get_typestore(Stores.LATEST)


def main() -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=positive, default=300, help="of the JPEG bag (default: %(default)s)")
    parser.add_argument("--raw-seconds", type=positive, default=10, help="of the raw bag (default: %(default)s)")
    parser.add_argument("--damaged", type=positive, default=400, help="bags to damage (default: %(default)s)")
    args = parser.parse_args()
    table = Table("bag", "MB", "messages", "one pass, s", f"{NUM_FRAMES} frames of {WINDOW_S:g} s, s (median)")
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in (("jpeg", args.seconds), ("raw", args.raw_seconds)):
            path = write_bag(Path(folder, name), name, seconds * RATE_HZ)
            figures[name] = measure(path)
            table.add_row(name, *(f"{value:.4g}" for value in figures[name].values()))
            path.unlink()
        outcomes = damage(Path(folder), args.damaged)
    Console().print(table)
    print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.items()), "of damaged bags")
    print_json({"benchmark": "bags", **figures, "damaged": dict(outcomes)})
    return 0


def write_bag(folder: Path, name: str, num_frames: int, width: int = WIDTH, height: int = HEIGHT) -> Path:
    """Write a bag of so many frames and return its file."""
    scene = sample_scene(np.random.default_rng(0), aspect=width / height, duration_s=2.0, is_moving=True)
    pictures = [render(scene, 2.0 * k / NUM_PICTURES, width, height) for k in range(NUM_PICTURES)]
    kind = COMPRESSED_TYPE if name == "jpeg" else IMAGE_TYPE
    bodies = [_body(picture, kind) for picture in pictures]
    with Writer(folder, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        camera = writer.add_connection("/camera", kind, typestore=TYPES)
        for k in range(num_frames):
            stamp_ns = T0_NS + k * 1_000_000_000 // RATE_HZ
            message = TYPES.types[kind](header=_header(stamp_ns), **bodies[k % NUM_PICTURES])
            writer.write(camera, stamp_ns + 1000, TYPES.serialize_cdr(message, kind))
    return next(folder.glob("*.mcap"))


def _body(rgb: np.ndarray, kind: str) -> dict[str, Any]:
    height, width = rgb.shape[:2]
    if kind == COMPRESSED_TYPE:
        _, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])
        return {"format": "rgb8; jpeg compressed bgr8", "data": data.reshape(-1)}
    pixels = np.ascontiguousarray(rgb).reshape(-1)
    return {"height": height, "width": width, "encoding": "rgb8", "is_bigendian": 0, "step": 3 * width, "data": pixels}


def _header(stamp_ns: int) -> Any:
    stamp = TYPES.types["builtin_interfaces/msg/Time"](sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return TYPES.types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")


def measure(path: Path) -> dict[str, float]:
    """Return the size of a bag, and the seconds that a pass over it and the frames of a window take."""
    start = time.perf_counter()
    index = index_topic(path)
    pass_s = time.perf_counter() - start
    windows: list[float] = []
    for begin_s in np.linspace(0, index.last_s - WINDOW_S, NUM_WINDOWS).tolist():
        start = time.perf_counter()
        read_frames(path, "", index.between(begin_s, begin_s + WINDOW_S, NUM_FRAMES))
        windows.append(time.perf_counter() - start)
    num_messages = len(index.stamps_ns)
    return {
        "megabytes": round(path.stat().st_size / 1e6, 1),
        "messages": num_messages,
        "pass_s": round(pass_s, 3),
        "window_s": round(statistics.median(windows), 3),
    }


def damage(folder: Path, count: int) -> Counter[str]:
    """Return what became of so many damaged bags; anything but these two outcomes ends the benchmark."""
    whole = write_bag(folder / "small", "raw", 10, 64, 48).read_bytes()
    outcomes: Counter[str] = Counter(read=0, refused=0)
    for number, content in enumerate(_damaged(whole, count)):
        path = folder / f"{number}.mcap"
        path.write_bytes(content)
        try:
            read_frames(path, "/camera", range(len(index_topic(path, "/camera").stamps_ns)))
            outcomes["read"] += 1
        except NvilaError:
            outcomes["refused"] += 1
        path.unlink()
    return outcomes


def _damaged(whole: bytes, count: int) -> Iterator[bytes]:
    """Yield copies that are cut anywhere, or in which one to four bytes are others, every second time near the end."""
    rng = np.random.default_rng(0)
    for number in range(count):
        content = bytearray(whole)
        if number % 3 == 0:
            yield bytes(content[: int(rng.integers(len(content)))])
            continue
        first = len(content) - 900 if number % 2 else 0  # the index lies there
        for at in rng.integers(first, len(content), rng.integers(1, 5)):
            content[at] = int(rng.integers(256))
        yield bytes(content)


if __name__ == "__main__":
    sys.exit(main())
