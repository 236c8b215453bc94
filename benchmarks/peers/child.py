"""One runtime in a process of its own: `prepare` writes its files, `serve` does a round on each request.

In: lines on stdin, one for each round. Out: one JSON line for each, and one before that says it is loaded. What the
runtimes print themselves goes to stderr, which the parent keeps as a log.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path

from benchmarks.peers.job import PeerJob

MISSING = ("openvino_telemetry", "torchvision")
"""Made to look missing: the one reports over the network, the other is not needed and where its build is of another
torch fails the import of transformers."""


def main() -> int:
    """Run one child; returns the exit code."""
    act, module_name, kind, text = sys.argv[1:]
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: one that is stopped could not end by itself
    sys.modules |= dict.fromkeys(MISSING)  # type: ignore[arg-type]
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    module = importlib.import_module(f"benchmarks.peers.{module_name}")
    job = PeerJob.from_json(text)
    start = time.perf_counter()
    if act == "prepare":
        module.prepare(kind, job)
        return 0
    run = module.load(kind, job)
    print(json.dumps({"load_s": time.perf_counter() - start}), file=out)
    for _ in sys.stdin:
        steps = run()
        print(json.dumps({"steps": dict(steps), "rss_bytes": resident_bytes()}), file=out)
    out.flush()
    os._exit(0)  # some runtimes crash or hang in their destructors, when all is said


def resident_bytes() -> int:
    """Return the memory that is resident, mapped files included."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS")).split()[1])


if __name__ == "__main__":
    sys.exit(main())
