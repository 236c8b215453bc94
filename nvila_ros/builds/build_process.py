"""`nvila build` as a child process: it reports progress, yields to other work, and never outlives its parent.

In: the verb's arguments. Out: progress, then a build or an error with the cause. The child is killed rather than asked
to end: a killed build resumes, and unfinished files do not load.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nvila_ros.errors import BuildError

MAX_LINE = 4096  # characters; a longer line is read as several
# The kernel kills the child when the thread that started it ends for any reason; a parent that ended before the call is
# detected by its id. Nice: the robot's own processes go first.
_CHILD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit("the process that started this build has ended")
os.nice(5)
try:  # this session may be a scheduling group of its own, in which nice counts for nothing outside of it
    with open("/proc/self/autogroup", "w") as group:
        group.write("5")
except OSError:
    pass
from nvila_ros.tools.cli import main
sys.exit(main())
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a build is.

    Attributes:
        part: such as `llm`.
        done: steps of the part.
        total: likewise.
        share: 0 to 1, of the whole build.
    """

    part: str
    done: int
    total: int
    share: float


class BuildProcess:
    """A running build. Create it, and iterate over it, on a thread that lives as long as the build.

    Args:
        arguments: of `nvila build`, without its name.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = tuple(arguments)
        self._last_line = "(none)"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(os.getpid()), "build", *self._arguments, "--progress", "json", "--wait"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches the parent alone, which decides
        )

    def __iter__(self) -> Iterator[Progress]:
        """Yield progress as it comes, until the build ends.

        Raises:
            BuildError: it ended without a build; the message holds the last line that it printed.
        """
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in iter(lambda: lines.readline(MAX_LINE), ""):
                progress = read_progress(line)
                if progress is not None:
                    yield progress
                elif line.strip():
                    self._last_line = line.strip()
        code = self._process.wait()
        if code:
            raise BuildError(
                f"nvila build {shlex.join(self._arguments)} {_describe_end(code)}; its last line: {self._last_line}"
            )

    def kill(self) -> None:
        """End it at once; the iteration raises `BuildError`."""
        self._process.kill()


def read_progress(line: str) -> Progress | None:
    """Return the progress in a line, or None for any other line."""
    try:
        values = json.loads(line)
        return Progress(str(values["part"]), int(values["done"]), int(values["total"]), float(values["progress"]))
    except (ValueError, TypeError, KeyError):
        return None


def _describe_end(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
