"""Ways to choose a part of a drawn set: by DeltaLoss, by chance, and as many of each cluster.

DeltaLoss keeps the best of each sub-dataset, and chance as many of each; `mixed` is DeltaLoss of the whole set as one.

Shapes: N samples.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from benchmarks.pruning.drawn import DrawnSet
from benchmarks.pruning.learning import first_hidden, log_probs
from nvila_ros.models.nvila import Nvila
from nvila_ros.training.pruning import delta_loss, select_top

METHODS = ("all", "deltaloss", "random", "clusters", "mixed")
NUM_CLUSTERS = 32


def score(drawn: DrawnSet, large: Nvila, small: Nvila) -> np.ndarray:
    """Return the DeltaLoss of each sample, (N,) float64, as `nvila prune` scores by default."""
    return delta_loss(log_probs(large, drawn), log_probs(small, drawn), drawn.num_learned, "mean")


def select(method: str, drawn: DrawnSet, scores: np.ndarray, small: Nvila, *, keep: float, seed: int) -> np.ndarray:
    """Return which samples a method keeps, (N,) bool.

    Args:
        method: one of `METHODS`.
        drawn: the set.
        scores: of `score`, (N,).
        small: model whose hidden states are clustered.
        keep: share of the samples.
        seed: of what is left to chance.
    """
    rng = np.random.default_rng((seed, METHODS.index(method)))
    is_kept = np.zeros(len(drawn), bool)
    if method == "all":
        is_kept[:] = True
    elif method == "mixed":
        is_kept = select_top(scores, drawn.keys, keep)
    elif method == "clusters":
        is_kept[spread(find_clusters(small, drawn, seed), math.floor(keep * len(drawn) + 0.5), rng)] = True
    else:
        for subset in np.unique(drawn.subsets):
            mine = np.flatnonzero(drawn.subsets == subset)
            order = scores[mine] if method == "deltaloss" else rng.permutation(len(mine)).astype(float)
            is_kept[mine] = select_top(order, drawn.keys[mine], keep)
    return is_kept


def find_clusters(small: Nvila, drawn: DrawnSet, seed: int) -> np.ndarray:
    """Return the cluster of each sample, (N,), over what a model holds at the beginning of its first answer."""
    cv2.setRNGSeed(seed)
    criteria = (cv2.TERM_CRITERIA_MAX_ITER, 50, 0.0)
    features = first_hidden(small, drawn)
    return cv2.kmeans(features, min(NUM_CLUSTERS, len(drawn)), None, criteria, 3, cv2.KMEANS_PP_CENTERS)[1].ravel()


def spread(clusters: np.ndarray, num_kept: int, rng: np.random.Generator) -> np.ndarray:
    """Return samples dealt from all clusters in turn, in each by chance; small ones run out first."""
    order = rng.permutation(len(clusters))
    place = np.empty(len(clusters), np.int64)
    for cluster in np.unique(clusters):
        mine = order[clusters[order] == cluster]
        place[mine] = np.arange(len(mine))
    return order[np.argsort(place[order], kind="stable")][:num_kept]
