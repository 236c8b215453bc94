"""One camera's questions, each asked when its scene allows it, again where the scene changed under it.

In: who asks over ROS, and what the camera sees. Out: one `Row` per question, with the truth as the stamps tell it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.markup import escape

from nvila_ros.tools.demo.questions import Item, World, find_truth, pose
from nvila_ros.tools.demo.report import Reply, Row
from nvila_ros.types import NS_PER_S
from nvila_ros.world.frame_source import FilmSource, WorldSource
from nvila_ros.world.questions import Question

SCENE_S = 4.0
"""How long `LiveWorld` shows a scene."""
LEAD_S = 1.0
"""A camera's first moving scene begins about this long after its first frame: time for what is asked of single frames,
and a clip of motion is there soon after."""
INTERVIEW_S = 60.0
"""How long one camera's questions may take."""
MAX_TRIES = 4
"""How often a question is asked where the scene changes under it."""
DISCOVERY_S = 5.0
"""How long the node may take to find a camera that others see already."""


class DemoError(RuntimeError):
    """Something did not come in time."""


class Asker(Protocol):
    """The one who asks."""

    def now_ns(self) -> int:
        """Return the ROS clock."""
        ...

    def rest(self, duration_s: float) -> None:
        """Do nothing but take in what comes, for this long."""
        ...

    def ask(self, item: Item, text: str, on_piece: Callable[[str], None]) -> Reply:
        """Ask through the item's door; the action tells each piece of the answer as it comes."""
        ...


@dataclass(frozen=True, slots=True)
class Show:
    """One camera: its parameters, what is to be seen in it for a given epoch, and what it is asked."""

    title: str
    parameters: dict[str, Any]
    make_world: Callable[[int], WorldSource | FilmSource]
    items: tuple[Item, ...]


def choose_epoch(spawned_ns: int, start_s: float) -> int:
    """Return the epoch for a camera that needs start_s to start, such that it soon shows a moving scene.

    Standing and moving scenes take turns, the first one stands. The epoch never lies after the camera's first frame,
    even if that comes at once.
    """
    epoch_ns = spawned_ns + round((start_s + LEAD_S - SCENE_S) * NS_PER_S)
    turn_ns = round(2 * SCENE_S * NS_PER_S)
    return epoch_ns - turn_ns * max(0, -(-(epoch_ns - spawned_ns) // turn_ns))


class Interview:
    """Asks one camera its questions.

    Args:
        asker: asks.
        title: name of the camera.
        world: what the camera sees.
        spawned_ns: when the camera's process was started; older frames are another camera's.
        since_ns: stamp of the first frame that was seen of it.
        console: takes each answer as it comes.
    """

    def __init__(
        self, asker: Asker, title: str, world: World, *, spawned_ns: int, since_ns: int, console: Console
    ) -> None:
        self._asker, self._title, self._world, self._console = asker, title, world, console
        self._spawned_ns, self._since_ns = spawned_ns, since_ns

    def run(self, items: Sequence[Item]) -> list[Row]:
        """Return one row per item, in their order.

        Raises:
            DemoError: a question could not be asked, or no answer came.
        """
        pending, num_tries, rows = list(items), Counter[Item](), {}
        end_s = time.monotonic() + INTERVIEW_S
        while pending and time.monotonic() < end_s:
            posed = self._pose(pending)
            if posed is None:
                self._asker.rest(0.02)
                continue
            row = self._ask(*posed)
            if not self._is_of_this_camera(row):
                self._asker.rest(0.2)
                continue
            num_tries[row.item] += 1
            if row.reply.error or row.truth is not None or num_tries[row.item] == MAX_TRIES:
                rows[row.item] = row
                pending.remove(row.item)
        if pending:
            raise DemoError(f"{self._title}: no time came to ask about {', '.join(item.kind for item in pending)}")
        return [rows[item] for item in items]

    def _pose(self, pending: Sequence[Item]) -> tuple[Item, Question] | None:
        now_ns = self._asker.now_ns()
        for item in pending:
            question = pose(self._world, item, now_ns, self._since_ns, SCENE_S)
            if question is not None:
                return item, question
        return None

    def _is_of_this_camera(self, row: Row) -> bool:
        """Whether the node has found this camera, and no longer looks at the one before or at none."""
        is_new = self._asker.now_ns() - self._since_ns < DISCOVERY_S * NS_PER_S
        return not is_new or self._has_filmed(row.reply.stamps_ns)

    def _has_filmed(self, stamps_ns: Sequence[int]) -> bool:
        return bool(stamps_ns) and stamps_ns[0] >= self._spawned_ns

    def _ask(self, item: Item, question: Question) -> Row:
        """Ask once, and print the answer: piece by piece where it comes so."""
        told: list[str] = []

        def on_piece(text: str) -> None:
            if not told:
                self._console.print(f"  {escape(question.text)} ", end="")
            told.append(text)
            self._console.print(escape(text), end="", style="bold", soft_wrap=True)

        reply = self._asker.ask(item, question.text, on_piece)
        if told:
            self._console.print()
        elif self._has_filmed(reply.stamps_ns):
            self._console.print(f"  {escape(question.text)} [bold]{escape(reply.text or reply.error)}")
        truth = find_truth(self._world, item, question, reply.stamps_ns) if self._has_filmed(reply.stamps_ns) else None
        return Row(self._title, item, question, truth, reply)
