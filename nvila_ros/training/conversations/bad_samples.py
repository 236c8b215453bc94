"""Errors of data sets and of single samples, and the count of samples that a run leaves out."""

from __future__ import annotations

from collections import Counter

from nvila_ros.errors import NvilaError

REASONS = (
    "malformed",
    "unknown_role",
    "turn_order",
    "empty_question",
    "empty_answer",
    "media_count",
    "media_order",
    "outside_media",
    "missing_media",
    "unreadable_media",
    "too_long",
)
"""Why a sample cannot be used."""


class DataError(NvilaError):
    """A data set cannot be used."""


class SampleError(DataError):
    """A sample cannot be used; `reason` is one of `REASONS`, `group` its sub-dataset where that is known."""

    group = ""

    def __init__(self, reason: str, name: str, text: str) -> None:
        super().__init__(f"{name}: {text}")
        assert reason in REASONS, reason
        self.reason = reason


class BadSamples:
    """Counts the samples that are left out, by reason; a strict run ends at the first one.

    Attributes:
        counts: number of samples of each reason.
        first: the error text of the first sample of each reason.
    """

    def __init__(self, *, is_strict: bool) -> None:
        self._is_strict = is_strict
        self.counts: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, error: SampleError) -> None:
        """Count one sample.

        Raises:
            SampleError: the run is strict.
        """
        if self._is_strict:
            raise error
        self.counts[error.reason] += 1
        self.first.setdefault(error.reason, str(error))
