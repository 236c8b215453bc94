"""Samples of several sources in one order, which can be resumed at any position."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from nvila_ros.errors import ConfigError
from nvila_ros.training.conversations.encoding import EncodedSample
from nvila_ros.training.conversations.files import SampleSource
from nvila_ros.training.conversations.samples import Sample

Encode = Callable[[Sample], EncodedSample]
"""Returns the ids of a sample, or raises `SampleError`."""


class SampleSequence:
    """The samples of all sources, in the order of the sources or shuffled.

    Args:
        sources: at least one sample in all.
        seed: of the shuffle; None leaves the order.
        epoch: each has a shuffle of its own.
    """

    def __init__(self, sources: Sequence[SampleSource], *, seed: int | None = None, epoch: int = 0) -> None:
        self._sources = tuple(sources)
        self._ends = np.cumsum([len(source) for source in sources], dtype=np.int64)
        if not len(self):
            raise ConfigError(f"there must be a sample to learn from, got none in {[s.name for s in sources]}")
        # Eight bytes a sample, and any position is found at once.
        self._order = None if seed is None else np.random.default_rng((seed, epoch)).permutation(len(self))

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, position: int) -> tuple[int, int]:
        """Return which source a position falls on, and the index there."""
        number = position if self._order is None else int(self._order[position])
        source = int(np.searchsorted(self._ends, number, side="right"))
        return source, number - (int(self._ends[source - 1]) if source else 0)

    def read(self, position: int) -> Sample:
        """Return the sample at a position.

        Raises:
            SampleError: it breaks a rule of the format.
        """
        source, index = self.locate(position)
        return self._sources[source].read(index)
