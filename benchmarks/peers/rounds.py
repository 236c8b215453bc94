"""Runtimes side by side: each in its own process, in alternating rounds, and only the one whose turn it is may run.

The others are stopped meanwhile (SIGSTOP), so that no pool of threads spins beside the one that is measured. What else
the machine does meets all alike.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from benchmarks.peers.job import QUIET, PeerJob

PREPARE_S, LOAD_S, ROUND_S = 900.0, 300.0, 300.0
NUM_LOG_LINES = 4
OWN_MODULES = ("ours", "memory")
"""Run in our own environment, each other module in that of the peers: neither changes what the other stands on."""


class RuntimeFaultError(Exception):
    """The process of a runtime failed."""


@dataclass(frozen=True, slots=True)
class PeerSetup:
    """A runtime to measure.

    Attributes:
        name: in the table.
        module: of this folder.
        kind: which of what the module knows.
        holds: what its weights are held in.
    """

    name: str
    module: str
    kind: str
    holds: str


@dataclass(slots=True)
class PeerResult:
    """The results of a runtime.

    Attributes:
        steps: seconds, by the step's name and then by round.
        fault: why there is nothing, or no more.
    """

    entry: PeerSetup
    steps: dict[str, list[list[float]]] = field(default_factory=dict)
    load_s: float = 0.0
    rss_bytes: int = 0
    fault: str = ""

    def typical(self, name: str) -> float | None:
        """Return the seconds of a step: of the rounds' medians the median; None if it was never measured."""
        return statistics.median(map(statistics.median, self.steps[name])) if name in self.steps else None

    def worst(self, name: str) -> float:
        """Return the worst round's median."""
        return max(map(statistics.median, self.steps[name]))


class Runtime:
    """One runtime's process."""

    def __init__(self, entry: PeerSetup, job: PeerJob, log_path: Path) -> None:
        self.result = PeerResult(entry)
        self._log_path = log_path
        self._python = sys.executable if entry.module in OWN_MODULES else job.python or sys.executable
        self._command = [
            self._python,
            "-m",
            "benchmarks.peers.child",
            "serve",
            entry.module,
            entry.kind,
            job.to_json(),
        ]
        self._process: subprocess.Popen[str] | None = None

    def prepare(self) -> None:
        """Let it write its files.

        Raises:
            RuntimeFaultError: it is not installed, or it did not write them.
        """
        needs = importlib.import_module(f"benchmarks.peers.{self.result.entry.module}").NEEDS
        if missing := find_missing(self._python, needs):
            raise RuntimeFaultError(f"{' and '.join(missing)} not installed; see make bench-engines")
        command = ["prepare" if word == "serve" else word for word in self._command]
        with self._log_path.open("w") as log:
            try:
                done = subprocess.run(command, stdout=log, stderr=log, env=os.environ | QUIET, timeout=PREPARE_S)
            except subprocess.TimeoutExpired:
                raise RuntimeFaultError(
                    f"its files were not written in {PREPARE_S:.0f} s; see {self._log_path}"
                ) from None
        if done.returncode != 0:
            raise RuntimeFaultError(self._last_words())

    def start(self) -> None:
        """Load it, and do a first round that is not counted.

        Raises:
            RuntimeFaultError: it did not.
        """
        with self._log_path.open("a") as log:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
            self._process = subprocess.Popen(self._command, text=True, env=os.environ | QUIET, **pipes)
        self.result.load_s = self._read(LOAD_S)["load_s"]
        self._ask()
        self._signal(signal.SIGSTOP)

    def run_round(self) -> None:
        """Do a round.

        Raises:
            RuntimeFaultError: it did not.
        """
        self._signal(signal.SIGCONT)
        reply = self._ask()
        self._signal(signal.SIGSTOP)
        for name, seconds in reply["steps"].items():
            self.result.steps.setdefault(name, []).append(seconds)
        self.result.rss_bytes = reply["rss_bytes"]

    def stop(self) -> None:
        """End its process, whatever it does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                _close(pipe)
            self._process = None

    def _ask(self) -> Mapping[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._read(ROUND_S)

    def _read(self, limit_s: float) -> Mapping[str, Any]:
        """Return the next line of its output; empty if it was killed at the limit."""
        assert self._process is not None
        assert self._process.stdout is not None
        watchdog = threading.Timer(limit_s, self._process.kill)
        watchdog.start()
        line = self._process.stdout.readline()
        watchdog.cancel()
        if not line:
            raise RuntimeFaultError(self._last_words())
        return json.loads(line)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _last_words(self) -> str:
        lines = self._log_path.read_text(encoding="utf-8", errors="replace").split("\n")
        said = " / ".join([line.strip() for line in lines if line.strip()][-NUM_LOG_LINES:])
        return f"failed: {said[-300:] or 'said nothing'}; see {self._log_path}"


def run_rounds(
    entries: Sequence[PeerSetup], job: PeerJob, num_rounds: int, report: Callable[[str], None]
) -> dict[str, PeerResult]:
    """Measure runtimes in alternating rounds; one that fails is left out with its reason."""
    runtimes = [Runtime(entry, job, _log_path(entry, job)) for entry in entries]
    live: list[Runtime] = []
    try:
        # All write first and then all load: what a writer holds should not lie beside loaded models.
        for act in (Runtime.prepare, Runtime.start):
            for runtime in runtimes:
                if not runtime.result.fault:
                    report(f"{runtime.result.entry.name}: {act.__name__}")
                    _try(runtime, act)
        for i in range(num_rounds):
            live = [runtime for runtime in runtimes if not runtime.result.fault]
            report(f"round {i + 1} of {num_rounds}: {', '.join(runtime.result.entry.name for runtime in live)}")
            for runtime in live if i % 2 == 0 else reversed(live):
                _try(runtime, Runtime.run_round)
    finally:
        for runtime in runtimes:
            runtime.stop()
    return {runtime.result.entry.name: runtime.result for runtime in runtimes}


def find_missing(python: str, names: Sequence[str]) -> list[str]:
    """Return which modules an environment lacks; none of them is imported, but the packages that hold them are.

    Raises:
        RuntimeFaultError: there is no such interpreter.
    """
    code = (
        "import importlib.util, sys\n"
        "for name in sys.argv[1:]:\n"
        "    try: found = importlib.util.find_spec(name)\n"
        "    except ModuleNotFoundError: found = None\n"
        "    if found is None: print(name)"
    )
    try:
        done = subprocess.run([python, "-c", code, *names], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise RuntimeFaultError(f"{python} does not run: {error}; see make bench-engines") from None
    return done.stdout.split()


def _try(runtime: Runtime, act: Callable[[Runtime], None]) -> None:
    try:
        act(runtime)
    except (RuntimeFaultError, BrokenPipeError) as error:
        runtime.result.fault = str(error)
        runtime.stop()


def _close(pipe: IO[str] | None) -> None:
    assert pipe is not None
    with contextlib.suppress(BrokenPipeError):
        pipe.close()


def _log_path(entry: PeerSetup, job: PeerJob) -> Path:
    folder = job.files("logs")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{entry.name.replace(' ', '_').replace('/', '_')}.log"
