"""Several samples in one row without padding; each has its own positions and its own triangle of attention.

Shapes: L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.training.conversations.encoding import EncodedSample
from nvila_ros.training.token_labels import IGNORE
from nvila_ros.visual.views import View


@dataclass(frozen=True, slots=True)
class PackedRow:
    """The input of one call of the decoder.

    Attributes:
        ids_L: as in `EncodedSample`, one sample behind the other.
        labels_L: likewise.
        positions_L: int64, from 0 in each sample.
        owner_L: int64, which sample of the row each token is of.
        branch_L: int64, as in `EncodedSample`; 0 where all is seen.
        views: of the media of all samples, in order.
    """

    ids_L: np.ndarray
    labels_L: np.ndarray
    positions_L: np.ndarray
    owner_L: np.ndarray
    branch_L: np.ndarray
    views: tuple[View, ...]

    @property
    def learned_owners(self) -> np.ndarray:
        """Which sample each learned token is of, in order, (T,) int64."""
        return self.owner_L[self.labels_L != IGNORE]


def join(samples: Sequence[EncodedSample]) -> PackedRow:
    """Return the row of samples, at least one."""
    lengths = [len(sample.ids_L) for sample in samples]
    return PackedRow(
        ids_L=np.concatenate([sample.ids_L for sample in samples]),
        labels_L=np.concatenate([sample.labels_L for sample in samples]),
        positions_L=np.concatenate([sample.positions for sample in samples]),
        owner_L=np.repeat(np.arange(len(samples)), lengths),
        branch_L=np.concatenate([_branches(sample) for sample in samples]),
        views=tuple(view for sample in samples for view in sample.views),
    )


def _branches(sample: EncodedSample) -> np.ndarray:
    return np.zeros(len(sample.ids_L), np.int64) if sample.branch_L is None else sample.branch_L


def pack(samples: Iterable[tuple[int, EncodedSample]], max_tokens: int) -> Iterator[list[tuple[int, EncodedSample]]]:
    """Yield groups of samples, in order, that fit a row of `max_tokens` each; a longer sample has a row to itself.

    Each sample comes with its position, so that a caller can resume after the last one of a group.
    """
    group: list[tuple[int, EncodedSample]] = []
    taken = 0
    for position, sample in samples:
        if group and taken + len(sample.ids_L) > max_tokens:
            yield group
            group, taken = [], 0
        group.append((position, sample))
        taken += len(sample.ids_L)
    if group:
        yield group
