"""Ranks share the samples of a step, and a shuffle is a function of its seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import ConfigError
from nvila_ros.training.conversations.bad_samples import BadSamples, SampleError
from nvila_ros.training.conversations.encoding import EncodedSample
from nvila_ros.training.conversations.samples import Sample
from nvila_ros.training.conversations.stream import SampleSequence
from nvila_ros.training.finetuning.step_batches import StepBatches
from nvila_ros.training.ranks import Ranks

sizes = st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(any)
seeds = st.none() | st.integers(0, 99)


class Numbers:
    """Samples that are their own number; every one that divides by `bad` cannot be read."""

    def __init__(self, name: str, first: int, size: int, bad: int = 0) -> None:
        self.name, self.first, self.size, self.bad = name, first, size, bad

    def __len__(self) -> int:
        return self.size

    def read(self, index: int) -> Sample:
        assert 0 <= index < self.size
        number = self.first + index
        if self.bad and number % self.bad == 0:
            raise SampleError("malformed", self.name, str(number))
        return Sample(str(number), (), self.name)

    def line(self, index: int) -> bytes:
        return b""

    def identity(self) -> dict[str, str]:
        return {}


def encode(sample: Sample) -> EncodedSample:
    return EncodedSample(np.array([int(sample.name)]), np.array([0]), ())


def sources(lengths: list[int], bad: int = 0) -> list[Numbers]:
    firsts = np.cumsum([0, *lengths]).tolist()
    return [Numbers(str(i), firsts[i], length, bad) for i, length in enumerate(lengths)]


def stream(lengths: list[int], seed: int | None, epoch: int = 0) -> SampleSequence:
    return SampleSequence(sources(lengths), seed=seed, epoch=epoch)


def numbers(conversations: SampleSequence) -> list[int]:
    return [int(conversations.read(position).name) for position in range(len(conversations))]


def steps(
    lengths: list[int], seed: int | None, batch: int, *, rank: int = 0, world_size: int = 1, bad: int = 0
) -> StepBatches:
    return StepBatches(
        sources(lengths, bad), encode, batch=batch, row_tokens=1, seed=seed, ranks=Ranks(rank, world_size)
    )


def read(batches: StepBatches, step: int) -> list[int]:
    return [int(number) for row in batches[step].rows for number in row.ids_L]


@given(lengths=sizes, seed=seeds, epoch=st.integers(0, 3))
def test_every_sample_has_one_position(lengths: list[int], seed: int | None, epoch: int) -> None:
    found = numbers(stream(lengths, seed, epoch))

    assert sorted(found) == list(range(sum(lengths)))
    assert seed is not None or found == sorted(found)


@given(lengths=sizes, seed=seeds, batch=st.integers(1, 6), world_size=st.integers(1, 5))
def test_ranks_share_the_samples_of_each_step(
    lengths: list[int], seed: int | None, batch: int, world_size: int
) -> None:
    alone = steps(lengths, seed, batch)
    ranks = [steps(lengths, seed, batch, rank=rank, world_size=world_size) for rank in range(world_size)]

    for step in range(2 * alone.steps_per_epoch):
        shares = [read(each, step) for each in ranks]
        assert sorted(number for share in shares for number in share) == sorted(read(alone, step))
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    epoch = [number for step in range(alone.steps_per_epoch) for number in read(alone, step)]
    assert epoch == numbers(stream(lengths, seed))


def test_each_seed_and_epoch_has_an_order_of_its_own() -> None:
    orders = [numbers(stream([40, 20], seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]

    assert numbers(stream([40, 20], 0, 0)) == orders[0]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_bad_samples_are_left_out_and_told() -> None:
    batches = steps([5, 5], None, 10, bad=3)

    assert read(batches, 0) == [1, 2, 4, 5, 7, 8]
    assert batches[0].faults == tuple(("malformed", f"{number // 5}: {number}") for number in (0, 3, 6, 9))


def test_tally_counts_and_a_strict_one_ends_the_run_with_the_first() -> None:
    tally = BadSamples(is_strict=False)
    for number in (3, 6):
        tally.add(SampleError("malformed", "a", str(number)))

    assert tally.counts == {"malformed": 2}
    assert tally.first == {"malformed": "a: 3"}
    with pytest.raises(SampleError, match="a: 3"):
        BadSamples(is_strict=True).add(SampleError("malformed", "a", "3"))


def test_no_sample_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a sample"):
        SampleSequence([])
    with pytest.raises(ConfigError, match=r"none in \['0'\]"):
        stream([0], None)
