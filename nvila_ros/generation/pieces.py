"""Token ids to text as they come: the pieces joined are the text of all ids."""

from __future__ import annotations

from collections.abc import Callable

BROKEN = "\ufffd"  # what decoding gives for a character whose bytes are not all there yet


class TextStream:
    """Gives out text once its characters are whole.

    A byte-level token may end amid a character, so text is held back while it ends in U+FFFD; what is truly broken
    comes with the flush.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._told = 0

    def push(self, token: int) -> str:
        """Take one token and return the text that has become whole, often one word, sometimes none."""
        self._ids.append(token)
        text = self.text
        return "" if text.endswith(BROKEN) else self._tell(text)

    def flush(self) -> str:
        """Return what was held back."""
        return self._tell(self.text)

    @property
    def text(self) -> str:
        """The text of all tokens so far."""
        return self._decode(self._ids)

    def _tell(self, text: str) -> str:
        piece, self._told = text[self._told :], len(text)
        return piece
