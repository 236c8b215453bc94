"""What was said before, so that a question can go on from it: bounded in conversations, turns and bytes.

The first turn of a conversation is kept however large it is, since the model has just held it.

A conversation keeps the visual tokens of the frames that its turns showed. A question that names no frames of its own
is about those; the tokens of the whole conversation so far are the prefix that the next prompt begins with.

Shapes: G visual tokens, D decoder width.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from nvila_ros.errors import QueryError
from nvila_ros.types import FrameRef
from nvila_ros.visual.encode import VisualPrompt

MAX_CONVERSATIONS = 16
MAX_TURNS = 32
MAX_BYTES = 64 << 20  # of visual tokens over all conversations


@dataclass(frozen=True, slots=True)
class Turn:
    """One question with what it showed, and its answer."""

    seen: VisualPrompt
    frames: tuple[FrameRef, ...]
    question: str
    answer: str


class Conversations:
    """Turns by conversation; the conversation that was not gone on with for longest is forgotten first."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, tuple[Turn, ...]] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._turns

    def __len__(self) -> int:
        return len(self._turns)

    def turns(self, name: str, shown: VisualPrompt) -> tuple[Turn, ...]:
        """Return the turns so far, none of a conversation that is new or was forgotten.

        Args:
            name: of the conversation.
            shown: what the next turn shows.

        Raises:
            QueryError: it has as many turns as one may have, or as much to remember.
        """
        turns = self._turns.get(name, ())
        if len(turns) >= MAX_TURNS:
            raise QueryError(f"conversation {name!r} has {MAX_TURNS} turns, the most there may be; begin a new one")
        num_new = shown.visual_GD.nbytes
        if turns and num_new and _num_bytes(turns) + num_new > MAX_BYTES:
            raise QueryError(
                f"conversation {name!r} may hold {MAX_BYTES >> 20} MiB of visual tokens, these frames are too many; "
                "ask on about those that it has, or begin a new conversation"
            )
        return turns

    def add(self, name: str, turn: Turn) -> None:
        """Append a turn, and forget others where there are too many."""
        self._turns[name] = (*self._turns.get(name, ()), turn)
        self._turns.move_to_end(name)
        while len(self._turns) > MAX_CONVERSATIONS or (len(self._turns) > 1 and self.num_bytes > MAX_BYTES):
            self._turns.popitem(last=False)

    @property
    def num_bytes(self) -> int:
        """Bytes of visual tokens held."""
        return sum(map(_num_bytes, self._turns.values()))


def _num_bytes(turns: tuple[Turn, ...]) -> int:
    return sum(turn.seen.visual_GD.nbytes for turn in turns)


def all_visual(turns: tuple[Turn, ...], seen: VisualPrompt) -> np.ndarray:
    """Return the visual tokens of earlier turns and of what is shown now, in prompt order, (G, D)."""
    return np.concatenate([*(turn.seen.visual_GD for turn in turns), seen.visual_GD])
