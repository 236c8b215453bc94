"""The samples of a step: a function of seed and step alone, divided among any number of ranks.

So a run can stop after any step and be resumed with more or fewer ranks. A step is a number of samples, not of rows:
which samples it holds must not depend on how ranks pack them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch.utils.data import Dataset

from nvila_ros.training.conversations.bad_samples import SampleError
from nvila_ros.training.conversations.encoding import EncodedSample
from nvila_ros.training.conversations.files import SampleSource
from nvila_ros.training.conversations.packing import PackedRow, join, pack
from nvila_ros.training.conversations.stream import Encode, SampleSequence
from nvila_ros.training.ranks import Ranks
from nvila_ros.training.token_labels import IGNORE


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The part of one rank in a step.

    Attributes:
        rows: packed samples; none where there are fewer samples than ranks.
        faults: reason and text of each sample that could not be read. Not raised here: an error of a reading process
            would reach the run as another.
    """

    rows: tuple[PackedRow, ...]
    faults: tuple[tuple[str, str], ...]

    @property
    def num_learned(self) -> int:
        """Tokens that are learned."""
        return sum(int((row.labels_L != IGNORE).sum()) for row in self.rows)


class StepBatches(Dataset):
    """Item k is a rank's part of the batch of step k.

    Args:
        sources: of the samples, at least one in all.
        encode: makes ids of a sample.
        batch: samples of a step, over all ranks; an epoch's last step holds what is left.
        row_tokens: most tokens of a row, but of one that a longer sample has to itself.
        seed: of the shuffle; None leaves the order.
        ranks: this one and how many there are.
    """

    def __init__(
        self,
        sources: Sequence[SampleSource],
        encode: Encode,
        *,
        batch: int,
        row_tokens: int,
        seed: int | None,
        ranks: Ranks,
    ) -> None:
        self._sources, self._encode, self._seed, self._ranks = tuple(sources), encode, seed, ranks
        self._batch, self._row_tokens = batch, row_tokens
        self._order = lru_cache(maxsize=1)(self._shuffle)
        self._num_samples = len(self._order(0))

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every sample is read once."""
        return -(-self._num_samples // self._batch)

    def __getitem__(self, step: int) -> StepBatch:
        """Return this rank's part of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        first, end = place * self._batch, min((place + 1) * self._batch, self._num_samples)
        samples: list[tuple[int, EncodedSample]] = []
        faults: list[tuple[str, str]] = []
        for position in range(first + self._ranks.rank, end, self._ranks.world_size):
            try:
                samples.append((position, self._encode(self._order(epoch).read(position))))
            except SampleError as error:
                faults.append((error.reason, str(error)))
        rows = [join([sample for _, sample in group]) for group in pack(samples, self._row_tokens)]
        return StepBatch(tuple(rows), tuple(faults))

    def _shuffle(self, epoch: int) -> SampleSequence:
        return SampleSequence(self._sources, seed=self._seed, epoch=epoch)


def blank_row() -> PackedRow:
    """Return a row of one token, for a rank that has fewer rows than others; nothing is learned from it."""
    zero_L = np.zeros(1, np.int64)
    return PackedRow(ids_L=zero_L, labels_L=zero_L, positions_L=zero_L, owner_L=zero_L, branch_L=zero_L, views=())
