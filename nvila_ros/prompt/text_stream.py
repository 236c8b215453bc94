"""Token ids to text as they come: the pieces joined are the text of all ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"  # what decoding gives for a character whose bytes are not all there yet


class TextStream:
    """Gives out text once its characters are whole.

    A byte-level token may end amid a character, so text is held back while it ends in U+FFFD; what is truly broken
    comes with the next whole character, or with the flush. What was passed on is never looked at again: a text's tokens
    are its bytes, and those behind a whole character say nothing about it.

    Args:
        decode: returns the text of ids.
        stop: texts before the first of which the stream ends; what may be the beginning of one is held back as well.
        front: what a tokenizer puts before every text; left out at the beginning.

    Attributes:
        is_stopped: whether one has come; nothing is given out any more.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = (), front: str = "") -> None:
        self.is_stopped = False
        self._decode, self._stop, self._front = decode, tuple(stop), front
        self._held: list[int] = []
        self._text = ""  # whole, but it may be the beginning of a stop

    def push(self, token: int) -> str:
        """Take one token and return the text that has become whole, often one word, sometimes none."""
        self._held.append(token)
        text = self._decode(self._held)
        if text.endswith(BROKEN):
            return ""
        self._held.clear()
        return self._pass_on(text)

    def flush(self) -> str:
        """Return what was held back."""
        text = self._pass_on(self._decode(self._held)) + self._text
        self._held.clear()
        self._text = ""
        return text

    def _pass_on(self, text: str) -> str:
        """Return as much of the text as belongs to the answer for sure."""
        if text and self._front:
            text, self._front = text.removeprefix(self._front), ""
        if not self._stop or self.is_stopped:
            return "" if self.is_stopped else text
        text = self._text + text
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if places:
            self.is_stopped, self._text = True, ""
            return text[: min(places)]
        kept = max(_overlap(text, stop) for stop in self._stop)
        self._text = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text a stop may begin with."""
    return next((k for k in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:k])), 0)
