"""Branches behind one prefix against each sequence by itself."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.generation import branches
from nvila_ros.generation.branches import Branch, TokenScore, TreeBatch, score_token
from nvila_ros.generation.decode import log_total, score_sequences
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.runtime.contract import Tree
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


class SpelledCache:
    """The ids that the rows of a cache were made of."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = list(ids)

    @property
    def length(self) -> int:
        return len(self.ids)


class SpelledEngine:
    """Logits of it are drawn at random by the whole sequence, so they are equal only for equal sequences, exactly.

    It refuses trees that the contract does not allow, and records the size of each call.
    """

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []  # tokens, and logits wanted

    def embed(self, ids_L: np.ndarray) -> np.ndarray:
        return ids_L[:, None].astype(np.float32)

    def forward_tree(self, embeds_LD: np.ndarray, cache: SpelledCache, tree: Tree) -> np.ndarray:
        num_held = cache.length
        cache.ids += [int(embed_D[0]) for embed_D in embeds_LD]
        assert (tree.positions_L.dtype, tree.sees_LM.dtype, tree.wanted_R.dtype) == (np.int64, np.bool_, np.int64)
        assert tree.positions_L.shape == (len(embeds_LD),)
        assert tree.sees_LM.shape == (len(embeds_LD), cache.length)
        self.sizes.append((len(embeds_LD), len(tree.wanted_R)))
        for row, (position, sees_M) in enumerate(zip(tree.positions_L, tree.sees_LM, strict=True), num_held):
            assert sees_M[row]
            assert not sees_M[row + 1 :].any()
            assert position == sees_M.sum() - 1
        sequences = [[cache.ids[row] for row in np.flatnonzero(tree.sees_LM[place])] for place in tree.wanted_R]
        return np.stack([spelled(ids) for ids in sequences]) if sequences else np.empty((0, 16), np.float32)


def spelled(ids: list[int]) -> np.ndarray:
    return np.random.default_rng([len(ids), *ids]).normal(size=16).astype(np.float32)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "score", "fork", "forward"]),
        st.integers(0, 9),
        st.lists(st.integers(0, 15), min_size=1, max_size=6),
    ),
    max_size=25,
)


@given(prefix=st.lists(st.integers(0, 15), max_size=4), steps=STEPS, limits=st.tuples(*[st.integers(1, 9)] * 2))
def test_each_token_sees_its_own_sequence_in_few_calls(
    prefix: list[int], steps: list[tuple[str, int, list[int]]], limits: tuple[int, int]
) -> None:
    engine, cache = SpelledEngine(), SpelledCache(prefix)
    tree = TreeBatch(engine, cache)  # type: ignore[arg-type]
    sequences: list[tuple[Branch, list[int]]] = [(Branch(), [])]
    want_logits: list[np.ndarray] = []
    want_scores: list[TokenScore] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(branches, "MAX_TOKENS", limits[0])
        patch.setattr(branches, "MAX_WANTED", limits[1])
        for what, which, ids in [*steps, ("forward", 0, [])]:
            branch, held = sequences[which % len(sequences)]
            if what == "fork":
                sequences.append((branch.fork(), list(held)))
            elif what == "add":
                tree.add(branch, ids)
                held += ids
                want_logits.append(spelled(prefix + held))
            elif what == "score":
                tree.score(branch, ids)
                for token, following in itertools.pairwise(ids):
                    held.append(token)
                    logits_V = spelled(prefix + held)
                    is_greedy = int(logits_V.argmax()) == following
                    want_scores.append(TokenScore(float(logits_V[following]) - log_total(logits_V), is_greedy))
            else:
                logits, scores = tree.forward()
                assert [each.tolist() for each in logits] == [each.tolist() for each in want_logits]
                assert scores == want_scores
                assert all(each.base is None for each in logits)  # none keeps the logits of a whole call alive
                check_calls(engine.sizes, limits)
                want_logits, want_scores, engine.sizes = [], [], []
    assert [[cache.ids[row] for row in branch.rows] for branch, _ in sequences] == [held for _, held in sequences]


def check_calls(sizes: list[tuple[int, int]], limits: tuple[int, int]) -> None:
    """Check that every call but the last is as large as may be, and none is empty or larger."""
    for num_tokens, num_wanted in sizes:
        assert 1 <= num_tokens <= limits[0]
        assert num_wanted <= limits[1]
    for num_tokens, num_wanted in sizes[:-1]:
        assert num_tokens == limits[0] or num_wanted == limits[1]


class ForgetfulEngine(SpelledEngine):
    """Returns one row of logits too few."""

    def forward_tree(self, embeds_LD: np.ndarray, cache: SpelledCache, tree: Tree) -> np.ndarray:
        return super().forward_tree(embeds_LD, cache, tree)[:-1]


def test_logits_of_one_branch_are_never_taken_for_those_of_another() -> None:
    tree = TreeBatch(ForgetfulEngine(), SpelledCache([]))  # type: ignore[arg-type]
    for token in (1, 2):
        tree.add(Branch(), [token])

    with pytest.raises(ValueError, match="zip"):
        tree.forward()


def test_nothing_that_waits_takes_no_call() -> None:
    engine = SpelledEngine()

    assert TreeBatch(engine, SpelledCache([1, 2])).forward() == ([], [])  # type: ignore[arg-type]
    assert engine.sizes == []


def test_score_is_the_log_probability_and_whether_it_is_the_likeliest() -> None:
    logits_V = np.log(np.array([0.2, 0.5, 0.3]))

    scores = [score_token(logits_V, token) for token in range(3)]

    assert [math.exp(score.log_prob) for score in scores] == pytest.approx([0.2, 0.5, 0.3])
    assert [score.is_greedy for score in scores] == [False, True, False]


@pytest.mark.slow
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
