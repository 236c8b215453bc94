"""Ranks share the samples, a shuffle is a function of its seed, and any position is a place to go on from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import ConfigError
from nvila_ros.training.conversations.encoding import EncodedSample
from nvila_ros.training.conversations.samples import Sample, SampleError
from nvila_ros.training.conversations.stream import Conversations, Tally

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

    def digest(self) -> str:
        return ""


def encode(sample: Sample) -> EncodedSample:
    return EncodedSample(np.array([int(sample.name)]), np.array([0]), ())


def stream(lengths: list[int], seed: int | None, epoch: int = 0, bad: int = 0) -> Conversations:
    firsts = np.cumsum([0, *lengths]).tolist()
    sources = [Numbers(str(i), firsts[i], length, bad) for i, length in enumerate(lengths)]
    return Conversations(sources, seed=seed, epoch=epoch)


def walk(conversations: Conversations, **where: int) -> list[tuple[int, int]]:
    tally = Tally(is_strict=True)
    return [(position, int(each.ids_L[0])) for position, each in conversations.encoded(encode, tally, **where)]


@given(lengths=sizes, seed=seeds, world_size=st.integers(1, 5))
def test_ranks_share_all_samples(lengths: list[int], seed: int | None, world_size: int) -> None:
    conversations = stream(lengths, seed)

    shares = [walk(conversations, rank=rank, world_size=world_size) for rank in range(world_size)]

    dealt = sorted(pair for share in shares for pair in share)
    assert dealt == walk(conversations)
    assert sorted(number for _, number in dealt) == list(range(sum(lengths)))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    if seed is None:
        assert [number for _, number in dealt] == list(range(sum(lengths)))


@given(lengths=sizes, seed=seeds, world_size=st.integers(1, 4), data=st.data())
def test_stream_goes_on_behind_any_position(
    lengths: list[int], seed: int | None, world_size: int, data: st.DataObject
) -> None:
    conversations = stream(lengths, seed)
    rank = data.draw(st.integers(0, world_size - 1))
    whole = walk(conversations, rank=rank, world_size=world_size)
    num_taken = data.draw(st.integers(0, len(whole)))

    after = whole[num_taken - 1][0] if num_taken else -1
    rest = walk(stream(lengths, seed), after=after, rank=rank, world_size=world_size)

    assert rest == whole[num_taken:]


def test_each_seed_and_epoch_has_an_order_of_its_own() -> None:
    orders = [walk(stream([40, 20], seed, epoch)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]

    assert walk(stream([40, 20], 0, 0)) == orders[0]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_bad_samples_are_left_out_and_counted() -> None:
    tally = Tally(is_strict=False)

    found = [int(each.ids_L[0]) for _, each in stream([5, 5], None, bad=3).encoded(encode, tally)]

    assert found == [1, 2, 4, 5, 7, 8]
    assert tally.counts == {"malformed": 4}
    assert tally.first == {"malformed": "0: 0"}


def test_strict_tally_ends_the_run_with_the_first() -> None:
    with pytest.raises(SampleError, match="3"):
        list(stream([2, 5], None, bad=3).encoded(encode, Tally(is_strict=True), after=0))


def test_no_sample_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a sample"):
        Conversations([])
    with pytest.raises(ConfigError, match=r"none in \['0'\]"):
        stream([0], None)
