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


class ServedProcess:
    """One process.

    Args:
        arguments: of the verb.
        port: 0 takes a free one.

    Attributes:
        url: where it listens.
        process: that listens.

    Raises:
        RuntimeError: it ended before it listened.
    """

    def __init__(self, *arguments: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "nvila_ros.tools.cli", "serve", *arguments, "--port", str(port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None, "it is a pipe"
        # The model, which loads meanwhile, may have its say first.
        line = next((line for line in self.process.stdout if line.startswith("listening on ")), "")
        if not line:
            self.process.stdout.close()
            raise RuntimeError(f"nvila serve ended with {self.process.wait()} before it listened")
        self.url = line.split()[2]

    def wait_until_ready(self) -> None:
        """Wait until it answers questions.

        Raises:
            RuntimeError: it was not ready in time.
        """
        end, last = time.monotonic() + WAIT_S, ""
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.url}/ready"):
                    return
            except URLError as error:
                last = str(error)
                time.sleep(0.1)
        raise RuntimeError(f"nvila serve was not ready within {WAIT_S:g} s: {last}")

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send a signal that ends it, and wait for its end."""
        self.process.send_signal(number)
        self.process.wait(WAIT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


@contextlib.contextmanager
def served_process(*arguments: str) -> Iterator[str]:
    """Start `nvila serve` on a free port, and yield its address once it is ready.

    Raises:
        RuntimeError: it ended, or was not ready in time.
    """
    served = ServedProcess(*arguments)
    try:
        served.wait_until_ready()
        yield served.url
    finally:
        served.end()
