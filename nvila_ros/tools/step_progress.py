"""The progress of long work: bars on a terminal, else a line every few seconds, or JSON lines for a program."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from nvila_ros.tools.options import print_json

LINE_S = 5.0
"""Seconds between two lines where standard error is no terminal."""
_log = logging.getLogger(__name__)


class StepProgress:
    """Reports how far each step of some work is; a context that lasts as long as the work.

    Args:
        steps: in order.
        as_json: print a JSON line at each change, and no lines for people.
        line_s: seconds between two lines for people.
        says_done: print a line when a step is done.
    """

    def __init__(
        self, steps: Sequence[str], *, as_json: bool = False, line_s: float = LINE_S, says_done: bool = True
    ) -> None:
        console = Console(stderr=True)
        self._is_terminal, self._as_json, self._line_s = console.is_terminal, as_json, line_s
        self._says_done = says_done and not console.is_terminal
        columns = [TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.fields[text]:<24}")]
        columns += [TimeElapsedColumn(), TimeRemainingColumn()]
        self._bars = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks = {step: self._bars.add_task(step, total=None, text="") for step in steps}
        self._shares = dict.fromkeys(steps, 0.0)
        self._texts = dict.fromkeys(steps, "not begun")
        self._last = ""
        self._start_s, self._is_over = time.monotonic(), threading.Event()
        self._lines = threading.Thread(target=self._print_lines, name="progress", daemon=True)

    def __enter__(self) -> StepProgress:
        self._bars.start()
        if not (self._is_terminal or self._as_json):
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
            _log.info("%s: done", step)
        if self._as_json:
            progress = sum(self._shares.values()) / len(self._shares)
            print_json({"part": step, "done": done, "total": total, "progress": progress})

    def _current(self) -> str | None:
        """Return the step that reported last, or the one behind it if that is done."""
        steps = list(self._shares)
        behind = steps[steps.index(self._last) :] if self._last else steps
        return next((step for step in behind if self._shares[step] < 1), None)

    def _print_lines(self) -> None:
        """Say every few seconds which step the work is at, also where a step reports nothing for long."""
        while not self._is_over.wait(self._line_s):
            step = self._current()
            if step is not None:
                _log.info("%s: %s, %.0f s so far", step, self._texts[step], time.monotonic() - self._start_s)
