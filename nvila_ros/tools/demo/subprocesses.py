"""Child processes that never outlive their parent's work; the end of their log is shown when they fail.

Each child leads a process group of its own, so that Ctrl-C reaches the parent alone and the parent decides the order.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STOP_S = 10.0
"""How long a child may take to end before it is killed."""
NUM_LOG_LINES = 20


class ChildError(RuntimeError):
    """A child ended before it was stopped."""


@dataclass(frozen=True, slots=True)
class Child:
    """A running child and the file that its output goes to."""

    name: str
    process: subprocess.Popen[bytes]
    log_path: Path


class Children:
    """Starts Python programs as children; as a context manager, stops all of them whatever happens.

    Args:
        folder: where their logs are written.
        environ: added to the parent's environment.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder, self._environ = folder, {**os.environ, **environ}
        self._children: list[Child] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *args: object) -> None:
        for child in reversed(self._children.copy()):
            self.stop(child)

    def start(self, name: str, module: str, args: Sequence[str]) -> Child:
        """Run `main()` of a module as a child."""
        log_path = self._folder / f"{name}.log"
        code = f"import sys; from {module} import main; sys.exit(main())"
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", code, *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
            )
        child = Child(name, process, log_path)
        self._children.append(child)
        return child

    def stop(self, child: Child) -> None:
        """End a child and its group by SIGTERM, or by SIGKILL if that is not enough."""
        self._children.remove(child)
        for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, None)):
            if child.process.poll() is None:
                os.killpg(child.process.pid, number)
                try:
                    child.process.wait(patience_s)
                except subprocess.TimeoutExpired:
                    continue

    def check(self) -> None:
        """Make sure that every child still runs.

        Raises:
            ChildError: one has ended; the message has the end of its log.
        """
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                raise ChildError(f"{child.name} ended with code {code}; its log ends with\n{log_tail(child)}")


def log_tail(child: Child) -> str:
    """Return the last lines that a child printed."""
    lines = child.log_path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-NUM_LOG_LINES:]) or "  (nothing)"
