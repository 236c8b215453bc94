"""How much of a known amount of work is done, on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

NUM_LINES = 20
"""Lines of the whole work where standard error is no terminal."""


class CountProgress:
    """Counts units of work; a context that lasts as long as the work.

    Args:
        name: of the work.
        total: units of it.
        done: units that an earlier run has done.
        is_shown: whether this process shows anything.

    Attributes:
        done: units that are done.
    """

    def __init__(self, name: str, total: int, *, done: int = 0, is_shown: bool = True) -> None:
        self.done, self._name, self._total, self._is_shown = done, name, total, is_shown
        console = Console(stderr=True)
        self._is_bar = is_shown and console.is_terminal
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        columns += [TimeRemainingColumn(), TextColumn("{task.fields[text]}")]
        self._bar = Progress(*columns, console=console, disable=not self._is_bar)
        self._task = self._bar.add_task(name, total=total, completed=done, text="")

    def __enter__(self) -> CountProgress:
        self._bar.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._bar.stop()

    def advance(self, text: str = "") -> None:
        """Report that one more unit is done, and what to show beside the count."""
        self.done += 1
        self._bar.update(self._task, completed=self.done, text=text)
        is_due = self.done * NUM_LINES // self._total > (self.done - 1) * NUM_LINES // self._total
        if is_due and self._is_shown and not self._is_bar:
            print(f"{self._name}: {self.done}/{self._total} {text}".rstrip(), file=sys.stderr, flush=True)
