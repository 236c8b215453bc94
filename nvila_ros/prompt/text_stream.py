"""Token ids to text as they come: the pieces joined are the text of all ids."""

from __future__ import annotations

from collections.abc import Callable

BROKEN = "\ufffd"  # what decoding gives for a character whose bytes are not all there yet


class TextStream:
    """Gives out text once its characters are whole.

    A byte-level token may end amid a character, so text is held back while it ends in U+FFFD; what is truly broken
    comes with the next whole character, or with the flush. What was told is never looked at again: a text's tokens are
    its bytes, and those behind a whole character say nothing about it.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """Take one token and return the text that has become whole, often one word, sometimes none."""
        self._held.append(token)
        text = self._decode(self._held)
        if text.endswith(BROKEN):
            return ""
        self._held.clear()
        return text

    def flush(self) -> str:
        """Return what was held back."""
        text = self._decode(self._held)
        self._held.clear()
        return text
