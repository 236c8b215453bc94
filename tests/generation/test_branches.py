"""Branches behind one prefix against each sequence by itself."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.generation import branches
from nvila_ros.generation.branches import Branch, TreeBatch
from nvila_ros.generation.decode import log_total, score_sequences
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.runtime.torch_engine import TorchEngine
from tests.golden_cases import CHECKPOINT, assert_near

STOP = 286
IDS = st.lists(st.integers(0, 280), min_size=1, max_size=5)


@functools.cache
def engine() -> TorchEngine:
    return TorchEngine(open_checkpoint(CHECKPOINT))


def alone(ids: list[int]) -> np.ndarray:
    """The logits after a sequence that is read anew."""
    return engine().forward(engine().embed(np.array(ids)), engine().new_cache(len(ids)))


@settings(max_examples=20, deadline=None)
@given(
    prefix=IDS,
    trunks=st.lists(st.tuples(IDS, st.lists(IDS, max_size=3)), min_size=1, max_size=3),
    max_tokens=st.integers(1, 8),
    max_wanted=st.integers(1, 8),
)
def test_forks_and_later_tokens_get_what_each_sequence_gets_alone(
    prefix: list[int], trunks: list[tuple[list[int], list[list[int]]]], max_tokens: int, max_wanted: int
) -> None:
    cache = engine().new_cache(128)
    engine().forward(engine().embed(np.array(prefix)), cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branches, "MAX_TOKENS", max_tokens)
        patch.setattr(branches, "MAX_WANTED", max_wanted)
        grove = TreeBatch(engine(), cache)
        told: list[tuple[Branch, list[int]]] = []
        for ids, forks in trunks:
            branch = Branch()
            grove.add(branch, ids)
            told.append((branch, ids))
            for fork in forks:
                told.append((branch.fork(), ids + fork))
                grove.add(told[-1][0], fork)
                grove.score(branch.fork(), [*fork, STOP])
        first, followed = grove.forward()
        for branch, ids in told:
            grove.add(branch, [ids[-1]])
        second, none = grove.forward()

    for (_, ids), logits_V, later_V in zip(told, first, second, strict=True):
        assert_near("logits", logits_V, alone(prefix + ids), 1e-4)
        assert_near("logits", later_V, alone([*prefix, *ids, ids[-1]]), 1e-4)
    assert none == []
    wanted = [
        (alone(prefix + ids + fork[:k]), [*fork, STOP][k])
        for ids, forks in trunks
        for fork in forks
        for k in range(1, len(fork) + 1)
    ]
    for got, (logits_V, token) in zip(followed, wanted, strict=True):
        assert got.log_prob == pytest.approx(logits_V[token] - log_total(logits_V), abs=1e-4)


def test_scores_are_the_probabilities_of_whole_answers() -> None:
    prompt = np.random.default_rng(1).integers(0, 280, 20).tolist()
    choices = [[5, 6, STOP], [5, STOP], [7, 8, 9, STOP]]
    rows = [(alone(prompt + ids[:k]), ids[k]) for ids in choices for k in range(1, len(ids))]
    log_probs = [logits_V[token] - log_total(logits_V) for logits_V, token in rows]

    got = score_sequences(alone(prompt), iter(log_probs), choices)

    each = [
        np.exp(sum(alone(prompt + ids[:k])[token] - log_total(alone(prompt + ids[:k])) for k, token in enumerate(ids)))
        for ids in choices
    ]
    assert np.allclose(got, np.array(each) / sum(each), rtol=1e-6)
