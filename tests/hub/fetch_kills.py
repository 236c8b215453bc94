"""Kill a fetch again and again: do all files end with the digests of one that nobody disturbed?

A local hub serves a checkpoint that a tensor which no answer needs makes as large as asked for. `nvila fetch` runs as a
process of its own and is killed by SIGKILL at a random moment of its work, then once more, and at last left alone.
Prints one JSON line; exit 1 if a file differs, or if anything loads what was not whole.

    .venv/bin/python -m tests.hub.fetch_kills --megabytes 200 --kills 20
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.errors import CheckpointError
from nvila_ros.models.checkpoint import open_checkpoint
from tests.hub.local_hub import LocalHub, folder_files

CHECKPOINT = Path(__file__).parents[1] / "golden" / "lite" / "ckpt"
TOWER, DEAD = "vision_tower/model.safetensors", "vision_model.head.dead"


def enlarge(files: dict[str, bytes], num_bytes: int) -> dict[str, bytes]:
    """Return a checkpoint's files with a dead tensor of this size, in two files."""
    noise = np.random.default_rng(0).bytes(num_bytes // 2)
    return files | {path: append(files[path], noise) for path in (TOWER, "mm_projector/model.safetensors")}


def append(content: bytes, data: bytes) -> bytes:
    """Return a safetensors file with one more tensor, of bytes."""
    size = int.from_bytes(content[:8], "little")
    header, rest = json.loads(content[8 : 8 + size]), content[8 + size :]
    header[DEAD] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [len(rest), len(rest) + len(data)]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest + data


def kill_often(num_bytes: int, num_kills: int, seed: int, scratch: Path) -> dict[str, Any]:
    """Fetch under kills, and return what came of it."""
    rng, folder = random.Random(seed), scratch / "fetched"
    with LocalHub(enlarge(folder_files(CHECKPOINT), num_bytes)) as hub:
        hub.bytes_per_s = num_bytes / max(num_kills, 1) / 0.8  # two connections, so some 0.4 s of work between kills
        loaded = sum(_run(hub, folder, rng.uniform(0, 0.4)) for _ in range(num_kills))
        sent_by_killed, hub.bytes_per_s = hub.sent, 0.0
        code = _start(hub, folder).wait()
        found = {p: d for p, d in folder_files(folder).items() if p not in ("nvila_source.json", ".lock")}
        return {
            "bytes": sum(map(len, hub.files.values())),
            "kills": num_kills,
            "seed": seed,
            "loaded_unfinished": loaded,
            "sent_before_last_run": sent_by_killed,
            "sent": hub.sent,
            "exit_code": code,
            "is_identical": found == hub.files,
        }


def _run(hub: LocalHub, folder: Path, seconds: float) -> bool:
    """Kill a run some time after it first asked for weights; returns whether anything loads what it left."""
    seen = len(hub.seen("store"))
    process = _start(hub, folder)
    while len(hub.seen("store")) == seen and process.poll() is None:
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        return False  # it was done before
    try:
        open_checkpoint(folder)
    except CheckpointError:
        return False
    return True


def _start(hub: LocalHub, folder: Path) -> subprocess.Popen[bytes]:
    own = {
        "HF_HUB_OFFLINE": "",
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder.parent / "huggingface"),
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-m", "nvila_ros.tools.cli", "fetch", hub.repo, "--to", str(folder), "--quiet"]
    return subprocess.Popen(command, env={**os.environ, **own}, stdout=subprocess.DEVNULL)


def main() -> int:
    """Run with the options given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = kill_often(args.megabytes * 10**6, args.kills, args.seed, Path(scratch))
    print(json.dumps(result))
    return int(not result["is_identical"] or result["loaded_unfinished"] > 0)


if __name__ == "__main__":
    sys.exit(main())
