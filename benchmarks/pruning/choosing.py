"""Ways to choose a part of a drawn set: by DeltaLoss, by chance, and as many of each cluster.

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

METHODS = ("all", "deltaloss", "random", "clusters")
NUM_CLUSTERS = 32


def select(method: str, drawn: DrawnSet, large: Nvila, small: Nvila, *, keep: float, seed: int) -> np.ndarray:
    """Return which samples a method keeps, (N,) bool; `large` and `small` are the models of the scores."""
    rng = np.random.default_rng((seed, METHODS.index(method)))
    num_kept = math.floor(keep * len(drawn) + 0.5)
    is_kept = np.zeros(len(drawn), bool)
    if method == "all":
        is_kept[:] = True
    elif method == "deltaloss":
        logs = log_probs(large, drawn), log_probs(small, drawn)
        is_kept = select_top(delta_loss(*logs, drawn.num_told, "mean"), drawn.keys, keep)
    elif method == "random":
        is_kept[rng.permutation(len(drawn))[:num_kept]] = True
    else:
        is_kept[spread(find_clusters(small, drawn, seed), num_kept, rng)] = True
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
