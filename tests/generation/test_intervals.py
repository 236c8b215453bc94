"""Intervals from the probabilities of time tokens, against counting all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.generation.intervals import MAX_INTERVALS, TimeOdds, find_intervals, restrict


def soft(center: float, num: int, std: float = 1.0) -> np.ndarray:
    weights = np.exp(-((np.arange(num) - center) ** 2) / (2 * std**2))
    return weights / weights.sum()


@given(st.integers(2, 30), st.integers(0, 9999))
def test_restricted_probabilities_are_those_of_the_allowed_tokens(num: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits_V, first = rng.normal(size=50).astype(np.float32) * 4, int(rng.integers(num))
    ids = rng.permutation(50)[:num].tolist()

    found = restrict(logits_V, ids, first)

    want = np.exp(logits_V[ids].astype(np.float64)) * (np.arange(num) >= first)
    assert np.allclose(found, want / want.sum())


def test_soft_mean_is_finer_than_the_likeliest_token() -> None:
    odds = TimeOdds(soft(4.3, 21), np.array([4]), soft(12.6, 21)[None])

    (found,) = find_intervals(odds)

    assert (found.start, found.end) == (4 / 20, 13 / 20)
    assert found.means == pytest.approx((4.3 / 20, 12.6 / 20), abs=2e-3)
    assert found.spreads == pytest.approx((1 / 20, 1 / 20), rel=0.05)
    assert found.probability == pytest.approx(odds.start_N[4] * odds.end_KN[0, 13])


@given(st.integers(2, 25), st.integers(1, 8), st.integers(0, 9999))
def test_intervals_are_ordered_and_apart(num: int, num_starts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    start_N = rng.dirichlet(np.ones(num))
    starts_K = np.argsort(-start_N)[: min(num_starts, num)]
    end_KN = np.stack([np.append(np.zeros(s), rng.dirichlet(np.ones(num - s))) for s in starts_K])

    found = find_intervals(TimeOdds(start_N, starts_K, end_KN))

    assert 1 <= len(found) <= MAX_INTERVALS
    assert [each.probability for each in found] == sorted((each.probability for each in found), reverse=True)
    assert found[0].probability == pytest.approx((start_N[starts_K] * end_KN.max(1)).max())
    assert all(each.start <= each.end for each in found)
    spans = sorted((each.start, each.end) for each in found)
    assert all(earlier[1] < later[0] for earlier, later in itertools.pairwise(spans))
