"""Probabilities of time tokens to intervals of a clip.

Shapes: N time tokens, K starts that are followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_INTERVALS = 3
NUM_STARTS = 8
"""Likeliest starts whose ends are asked for."""


@dataclass(frozen=True, slots=True)
class TimeOdds:
    """What a model says of an event's begin and end.

    Attributes:
        start_N: probability of each time token as the begin.
        starts_K: the likeliest of them, best first.
        end_KN: probability of each as the end behind each of those; 0 before it.
    """

    start_N: np.ndarray
    starts_K: np.ndarray
    end_KN: np.ndarray


@dataclass(frozen=True, slots=True)
class PlaceInterval:
    """An interval in places of the clip, from 0 to 1.

    Attributes:
        start: place of the likeliest begin.
        end: place of the likeliest end behind it.
        probability: of just these two tokens.
        means: of begin and end; where tokens were learned softly, finer than the likeliest ones.
        spreads: standard deviations of begin and end.
    """

    start: float
    end: float
    probability: float
    means: tuple[float, float]
    spreads: tuple[float, float]


def restrict(logits_V: np.ndarray, ids: Sequence[int], first: int = 0) -> np.ndarray:
    """Return the probabilities of some tokens among themselves, (N,) float64; none before the `first` of them."""
    logits_N = logits_V[list(ids)].astype(np.float64)
    logits_N[:first] = -np.inf
    weights_N = np.exp(logits_N - logits_N.max())
    return weights_N / weights_N.sum()


def find_intervals(odds: TimeOdds, most: int = MAX_INTERVALS) -> list[PlaceInterval]:
    """Return the likeliest intervals that do not overlap, best first."""
    places_N = np.arange(len(odds.start_N)) / (len(odds.start_N) - 1)
    ends_K = odds.end_KN.argmax(1)
    odds_K = odds.start_N[odds.starts_K] * odds.end_KN.max(1)
    taken: list[int] = []
    for k in np.argsort(-odds_K, kind="stable").tolist():
        is_free = all(odds.starts_K[k] > ends_K[t] or ends_K[k] < odds.starts_K[t] for t in taken)
        if is_free and len(taken) < most:
            taken.append(k)
    begins = odds.starts_K[taken]
    nearest_N = np.abs(np.arange(len(odds.start_N))[:, None] - begins).argmin(1)  # each start belongs to one interval
    found = []
    for n, k in enumerate(taken):
        begin, end = (
            _moments(places_N, np.where(nearest_N == n, odds.start_N, 0)),
            _moments(places_N, odds.end_KN[k]),
        )
        found.append(
            PlaceInterval(
                float(places_N[odds.starts_K[k]]),
                float(places_N[ends_K[k]]),
                float(odds_K[k]),
                (begin[0], end[0]),
                (begin[1], end[1]),
            )
        )
    return found


def _moments(places_N: np.ndarray, weights_N: np.ndarray) -> tuple[float, float]:
    share_N = weights_N / weights_N.sum()
    mean = float(share_N @ places_N)
    return mean, float(np.sqrt(share_N @ (places_N - mean) ** 2))
