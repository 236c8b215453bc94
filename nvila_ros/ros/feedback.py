"""Feedback of the action: pieces of an answer, merged so that a client with a short queue can follow."""

from __future__ import annotations

import time
from collections.abc import Callable

from nvila_ros.msg import AnswerToken

EVERY_S = 0.05
"""A small model makes 20 pieces in 20 ms, and a client of the action keeps 10 unless it asks for more."""


class Feedback:
    """Merges pieces that come faster than `EVERY_S`; those that are sent, joined by index, are the answer's text.

    Args:
        publish: sends one token as feedback.
        now_s: the steady clock.
    """

    def __init__(self, publish: Callable[[AnswerToken], None], now_s: Callable[[], float] = time.monotonic) -> None:
        self._publish, self._now_s = publish, now_s
        self._text, self._num_sent = "", 0
        self._sent_s = -EVERY_S

    def add(self, token: AnswerToken) -> None:
        """Send a piece with those that wait, or let it wait for the next; the last one is sent at once."""
        self._text += token.piece
        now_s = self._now_s()
        if not token.is_final and now_s - self._sent_s < EVERY_S:
            return
        self._publish(
            AnswerToken(
                header=token.header,
                query_id=token.query_id,
                index=self._num_sent,
                piece=self._text,
                is_final=token.is_final,
            )
        )
        self._text, self._num_sent, self._sent_s = "", self._num_sent + 1, now_s
