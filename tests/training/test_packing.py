"""What is packed into a row is learned as if each sample were alone."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.generation.generator import embed_prompt
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.torch_engine import TorchEngine, load_torch_model
from nvila_ros.training.conversations.encoding import EncodedSample, encode_sample
from nvila_ros.training.conversations.forward import learned_log_probs, see_views
from nvila_ros.training.conversations.packing import join, pack
from nvila_ros.training.conversations.planted import PlantedSpec, PlantedWorld
from nvila_ros.training.token_labels import IGNORE
from tests.golden_cases import GOLDEN

NUM_SAMPLES = 6
NAMES = ("lite", "s2", "video")


@lru_cache
def load(name: str) -> tuple[Nvila, list[EncodedSample]]:
    """A random model and planted samples of one to three turns as it reads them."""
    checkpoint = open_checkpoint(GOLDEN / name / "ckpt")
    tokenizer = ChatTokenizer.from_folder(checkpoint.tokenizer_folder)
    worlds = [PlantedWorld(PlantedSpec(num_samples=NUM_SAMPLES, num_turns=1 + i % 3)) for i in range(NUM_SAMPLES)]
    samples = [encode_sample(checkpoint.spec, tokenizer, world.read(i)) for i, world in enumerate(worlds)]
    return load_torch_model(checkpoint), samples


def sample(num_tokens: int, num_learned: int) -> EncodedSample:
    ids = np.arange(num_tokens)
    labels = np.full(num_tokens, IGNORE)
    labels[num_tokens - num_learned :] = 7
    return EncodedSample(ids, labels, ())


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=6, deadline=None)
@given(chosen=st.lists(st.integers(0, NUM_SAMPLES - 1), min_size=2, max_size=4))
def test_packed_losses_are_those_of_samples_alone(name: str, chosen: list[int]) -> None:
    model, samples = load(name)
    group = [samples[i] for i in chosen]

    packed_T = learned_log_probs(model, join(group))

    alone_T = torch.cat([learned_log_probs(model, join([each])) for each in group])
    assert (packed_T - alone_T).abs().max() < 2e-5


@pytest.mark.parametrize("name", NAMES)
def test_log_probs_are_those_of_the_reference_engine(name: str) -> None:
    model, samples = load(name)
    engine = TorchEngine(open_checkpoint(GOLDEN / name / "ckpt"))
    for each in samples[:3]:
        embeds_LD = embed_prompt(engine, each.ids_L, see_views(model, each.views).numpy())
        log_LV = torch.from_numpy(engine.forward_all(embeds_LD)).log_softmax(-1)
        slow_T = [log_LV[i, label].item() for i, label in enumerate(each.labels_L) if label != IGNORE]

        fast_T = learned_log_probs(model, join([each])).tolist()

        assert np.abs(np.subtract(fast_T, slow_T)).max() < 2e-5


def test_gradients_of_a_row_are_the_sum_of_its_samples() -> None:
    _, samples = load("s2")
    model = load_torch_model(open_checkpoint(GOLDEN / "s2" / "ckpt")).requires_grad_()

    def gradients(*rows: list[EncodedSample]) -> list[torch.Tensor]:
        model.zero_grad(set_to_none=True)
        sum(learned_log_probs(model, join(row)).sum() for row in rows).backward()
        return [parameter.grad for parameter in model.parameters()]

    packed, alone = gradients(samples[:3]), gradients(*([each] for each in samples[:3]))
    for got, want in zip(packed, alone, strict=True):
        assert (got - want).abs().max() <= 1e-4 * want.abs().max() + 1e-5


@given(lengths=st.lists(st.integers(1, 12), max_size=20), max_tokens=st.integers(1, 20))
def test_groups_keep_the_order_and_fit_their_row(lengths: list[int], max_tokens: int) -> None:
    samples = [(3 * i, sample(length, 1)) for i, length in enumerate(lengths)]

    groups = list(pack(samples, max_tokens))

    assert [each for group in groups for each in group] == samples
    sizes = [sum(len(each.ids_L) for _, each in group) for group in groups]
    assert all(size <= max_tokens or len(group) == 1 for size, group in zip(sizes, groups, strict=True))
    firsts = [len(group[0][1].ids_L) for group in groups[1:]]
    assert all(size + first > max_tokens for size, first in zip(sizes, firsts, strict=False))


@given(shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_row_tells_whose_each_token_is(shapes: list[tuple[int, int]]) -> None:
    samples = [sample(length, min(told, length)) for length, told in shapes]

    row = join(samples)

    assert len(row.ids_L) == len(row.labels_L) == len(row.positions_L) == len(row.owner_L)
    for number, each in enumerate(samples):
        is_mine = row.owner_L == number
        assert np.array_equal(row.positions_L[is_mine], np.arange(len(each.ids_L)))
        assert np.array_equal(row.ids_L[is_mine], each.ids_L)
        assert (row.learned_owners == number).sum() == len(each.learned_ids)
