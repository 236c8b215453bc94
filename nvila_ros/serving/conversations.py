"""Earlier turns of conversations, bounded in conversations, turns and bytes.

A conversation keeps the visual tokens of the frames that its turns showed. A question that names no frames of its own
is about those; the tokens of the whole conversation so far are the prefix that the next prompt begins with. The first
turn of a conversation is kept however large it is, since the model has just held it.

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
class Exchange:
    """One question with the frames it showed, and its answer."""

    visual: VisualPrompt
    frames: tuple[FrameRef, ...]
    question: str
    answer: str


class ConversationStore:
    """Exchanges by conversation; the least recently continued conversation is forgotten first."""

    def __init__(self) -> None:
        self._exchanges: OrderedDict[str, tuple[Exchange, ...]] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._exchanges

    def __len__(self) -> int:
        return len(self._exchanges)

    def history(self, name: str, visual: VisualPrompt) -> tuple[Exchange, ...]:
        """Return the exchanges so far, none of a conversation that is new or was forgotten.

        Args:
            name: of the conversation.
            visual: what the next question shows.

        Raises:
            QueryError: it has as many exchanges, or as many bytes, as one may have.
        """
        history = self._exchanges.get(name, ())
        if len(history) >= MAX_TURNS:
            raise QueryError(f"conversation {name!r} has {MAX_TURNS} turns, the most there may be; begin a new one")
        num_new = visual.visual_GD.nbytes
        if history and num_new and _num_bytes(history) + num_new > MAX_BYTES:
            raise QueryError(
                f"conversation {name!r} may hold {MAX_BYTES >> 20} MiB of visual tokens, these frames are too many; "
                "ask on about those that it has, or begin a new conversation"
            )
        return history

    def add(self, name: str, exchange: Exchange) -> None:
        """Append an exchange, and forget other conversations where there are too many."""
        self._exchanges[name] = (*self._exchanges.get(name, ()), exchange)
        self._exchanges.move_to_end(name)
        while len(self._exchanges) > MAX_CONVERSATIONS or (len(self._exchanges) > 1 and self.num_bytes > MAX_BYTES):
            self._exchanges.popitem(last=False)

    @property
    def num_bytes(self) -> int:
        """Bytes of visual tokens held."""
        return sum(map(_num_bytes, self._exchanges.values()))


def _num_bytes(history: tuple[Exchange, ...]) -> int:
    return sum(exchange.visual.visual_GD.nbytes for exchange in history)


def all_visual(history: tuple[Exchange, ...], visual: VisualPrompt) -> np.ndarray:
    """Return the visual tokens of earlier exchanges and of what is shown now, in prompt order, (G, D)."""
    return np.concatenate([*(exchange.visual.visual_GD for exchange in history), visual.visual_GD])
