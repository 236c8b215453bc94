"""Earlier turns of conversations, as messages that are sent again with each question; bounded."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from nvila_ros.errors import QueryError
from nvila_ros.types import FrameRef

MAX_CONVERSATIONS = 16
MAX_TURNS = 32
MAX_BYTES = 24 << 20
"""Of the pictures of one conversation, as they are sent; servers take some 32 MiB in one request."""
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SentTurn:
    """A question as it was sent, and its answer.

    Attributes:
        messages: of the user and of the model.
        frames: that were shown.
        num_bytes: of the pictures.
    """

    messages: tuple[Message, ...]
    frames: tuple[FrameRef, ...]
    num_bytes: int


class SentConversations:
    """Turns by conversation; the least recently continued conversation is forgotten first."""

    def __init__(self) -> None:
        self._turns: OrderedDict[str, tuple[SentTurn, ...]] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        return name in self._turns

    def __len__(self) -> int:
        return len(self._turns)

    def history(self, name: str, num_new_bytes: int) -> tuple[SentTurn, ...]:
        """Return the turns so far, none of a conversation that is new or was forgotten.

        Args:
            name: of the conversation.
            num_new_bytes: of the pictures that the next question shows.

        Raises:
            QueryError: it has as many turns, or as many bytes, as one may have.
        """
        history = self._turns.get(name, ())
        if len(history) >= MAX_TURNS:
            raise QueryError(f"conversation {name!r} has {MAX_TURNS} turns, the most there may be; begin a new one")
        num_bytes = sum(turn.num_bytes for turn in history)
        if history and num_new_bytes and num_bytes + num_new_bytes > MAX_BYTES:
            raise QueryError(
                f"conversation {name!r} may hold {MAX_BYTES >> 20} MiB of pictures, these frames are too many; "
                "ask on about those that it has, or begin a new conversation"
            )
        return history

    def add(self, name: str, turn: SentTurn) -> None:
        """Append a turn, and forget other conversations where there are too many."""
        self._turns[name] = (*self._turns.get(name, ()), turn)
        self._turns.move_to_end(name)
        while len(self._turns) > MAX_CONVERSATIONS:
            self._turns.popitem(last=False)
