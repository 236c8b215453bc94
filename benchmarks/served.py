"""`nvila serve` as a child process, for benchmarks and tests."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from urllib.error import URLError

WAIT_S = 60.0


@contextlib.contextmanager
def served_process(*arguments: str) -> Iterator[str]:
    """Start `nvila serve` on a free port, and yield its address once it is ready.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    command = [sys.executable, "-m", "nvila_ros.tools.cli", "serve", *arguments, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None, "it is a pipe"
        # The model, which loads meanwhile, may have its say first.
        line = next((line for line in process.stdout if line.startswith("listening on ")), "")
        if not line:
            raise RuntimeError(f"nvila serve ended with {process.wait()} before it listened")
        url = line.split()[2]
        _wait_until_ready(url)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(WAIT_S)
        if process.stdout is not None:
            process.stdout.close()


def _wait_until_ready(url: str) -> None:
    end, last = time.monotonic() + WAIT_S, ""
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/ready"):
                return
        except URLError as error:
            last = str(error)
            time.sleep(0.1)
    raise RuntimeError(f"nvila serve was not ready within {WAIT_S:g} s: {last}")
