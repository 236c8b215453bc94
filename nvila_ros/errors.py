"""The exceptions of the project: one small tree, raised where a caller's input is checked.

Every message names the rule that was broken, the values that broke it and what to do. All are ValueErrors, since each
one reports bad input; a bug of ours is an `AssertionError` and is never caught by name.
"""

from __future__ import annotations

import reprlib
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def shown(value: object) -> str:
    """Return the text of a value that came from outside, for a message: never longer than a line or two."""
    return _SHORT.repr(value)


def size_text(num_bytes: int) -> str:
    """Return a size in the largest unit of which there is one, so that little is never shown as 0.0 of much."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.2f} {unit}"
    return f"{num_bytes} B"


class NvilaError(ValueError):
    """Base of every error that a caller can cause and fix."""


class ConfigError(NvilaError):
    """A parameter, recipe or option has a value outside its rule."""


class CheckpointError(NvilaError):
    """A checkpoint is missing, truncated, of an unknown kind or at odds with its own config."""


class HubError(NvilaError):
    """A hub of models refuses, cannot be reached, or sends what cannot be right."""


class FrameError(NvilaError):
    """An image message or a media file cannot be turned into a frame."""


class QueryError(NvilaError):
    """A question, window or limit of a query is not acceptable."""


class NoFramesError(NvilaError):
    """The window asked about holds no frame."""


class ShapeError(NvilaError):
    """Two arrays that must agree do not; going on would answer about the wrong pixels."""


class NumericsError(NvilaError):
    """The model computed a NaN or an infinity; nothing that follows from it is an answer."""


class BackendError(NvilaError):
    """A backend is unknown, not installed, or refuses the model."""


class BuildError(NvilaError):
    """A build that ran as a process of its own ended without its result."""


class UnansweredError(NvilaError):
    """A question got no answer: it was rejected, canceled, came too late, or the model failed.

    Attributes:
        answer: what there is of it, a `types.Answer`; its `finish_reason` says why. None where the node sent none.
    """

    def __init__(self, text: str, answer: Any = None) -> None:
        super().__init__(text)
        self.answer = answer


class ServerError(NvilaError):
    """A client finds no node that serves it, or lost it."""


class ServerTimeoutError(ServerError, TimeoutError):
    """A node did not respond to a client in time."""
