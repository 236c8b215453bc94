"""The progress of long work, on standard error: bars on a terminal, else lines; or JSON lines for a program."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nvila_ros.tools.options import print_json

LINE_S, LONGEST_S, GROWTH = 5.0, 60.0, 1.2
"""Seconds between the first lines where standard error is no terminal, and by and by; what one grows by to the next."""


class UnitCounter(Protocol):
    """Reports that one more unit of a step is done."""

    def __call__(self, text: str = "") -> None:
        """Count it, and show a text beside the count."""
        ...


class StepProgress:
    """Reports how far each step of some work is; a context that lasts as long as the work.

    Args:
        steps: in order.
        as_json: print a JSON line at each change, and no lines for people.
        line_s: seconds to the first line for people.
        says_done: print a line when a step is done.
        is_shown: whether people see anything.
    """

    def __init__(
        self,
        steps: Sequence[str],
        *,
        as_json: bool = False,
        line_s: float = LINE_S,
        says_done: bool = True,
        is_shown: bool = True,
    ) -> None:
        console = Console(stderr=True)
        self._is_bar, self._as_json, self._line_s = console.is_terminal and is_shown, as_json, line_s
        self._has_lines = is_shown and not (console.is_terminal or as_json)
        self._says_done = says_done and self._has_lines
        columns = [TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.fields[text]:<24}")]
        columns += [TimeElapsedColumn(), TimeRemainingColumn()]
        self._bars = Progress(*columns, console=console, disable=not self._is_bar)
        self._tasks = {step: self._bars.add_task(step, total=None, text="") for step in steps}
        self._shares = dict.fromkeys(steps, 0.0)
        self._texts = dict.fromkeys(steps, "not begun")
        self._last = ""
        self._start_s, self._is_over = time.monotonic(), threading.Event()
        self._lines = threading.Thread(target=self._print_lines, name="progress", daemon=True)

    def __enter__(self) -> StepProgress:
        self._bars.start()
        if self._has_lines:
            self._lines.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._is_over.set()
        if self._lines.is_alive():
            self._lines.join()
        self._bars.stop()

    def advance(self, step: str, done: int, total: int, text: str = "") -> None:
        """Report how far a step is; a smaller share than before is ignored."""
        if self._shares[step] >= done / total:
            return
        self._last = step
        self._shares[step], self._texts[step] = done / total, text or f"{done}/{total}"
        self._bars.update(self._tasks[step], completed=done, total=total, text=self._texts[step])
        if self._says_done and done == total:
            _print(f"{step}: done")
        if self._as_json:
            progress = sum(self._shares.values()) / len(self._shares)
            print_json({"part": step, "done": done, "total": total, "progress": progress})

    def counter(self, step: str, total: int, done: int = 0) -> UnitCounter:
        """Begin a step that goes on after `done` of its units; return what reports each further one."""
        self._bars.reset(self._tasks[step], total=total, completed=done)  # the time left is that of the units to come
        self._shares[step], self._texts[step], self._last = done / max(total, 1), f"{done}/{total}", step

        def count(text: str = "") -> None:
            nonlocal done
            done += 1
            self.advance(step, done, total, f"{done}/{total} {text}".rstrip())

        return count

    def _current(self) -> str | None:
        """Return the step that reported last, or the one behind it if that is done."""
        steps = list(self._shares)
        behind = steps[steps.index(self._last) :] if self._last else steps
        return next((step for step in behind if self._shares[step] < 1), None)

    def _print_lines(self) -> None:
        """Say every few seconds which step the work is at, also where a step reports nothing for long."""
        wait_s = self._line_s
        while not self._is_over.wait(wait_s):
            step = self._current()
            if step is not None:
                _print(f"{step}: {self._texts[step]}, {time.monotonic() - self._start_s:.0f} s so far")
            wait_s = min(wait_s * GROWTH, LONGEST_S)


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
