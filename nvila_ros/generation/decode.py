"""Greedy decoding over any engine, and how likely whole answers are.

Shapes: L tokens, D decoder width, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from nvila_ros.runtime.contract import Cache, Engine


def decode_greedy(
    engine: Engine, logits_V: np.ndarray, cache: Cache, *, stop_id: int | None, never: np.ndarray
) -> Iterator[int]:
    """Yield the most likely token again and again, up to and without the stop token; never ends by itself otherwise.

    Args:
        engine: runs the decoder.
        logits_V: the logits after the prompt.
        cache: holds the prompt.
        stop_id: the stop token; without one, decoding goes on for as long as it is asked to.
        never: ids that must not be sampled, such as those of media tokens inside the table.
    """
    while (token := most_likely(logits_V, never)) != stop_id:
        yield token
        logits_V = engine.forward(engine.embed(np.array([token])), cache)


def most_likely(logits_V: np.ndarray, never: np.ndarray) -> int:
    """Return the id of the greatest logit among those that may be sampled."""
    if never.size:
        logits_V = logits_V.copy()
        logits_V[never] = -np.inf
    return int(logits_V.argmax())


def score_sequences(logits_V: np.ndarray, log_probs: Iterator[float], sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """Return how likely each sequence of tokens is to follow, normalised over the sequences; float64.

    Args:
        logits_V: the logits where all of them begin.
        log_probs: of each sequence in turn, how likely each of its tokens but the first is behind those before it.
        sequences: token ids, the stop token included.
    """
    total = log_total(logits_V)
    scores = np.array([logits_V[ids[0]] - total + sum(itertools.islice(log_probs, len(ids) - 1)) for ids in sequences])
    return np.exp(scores - log_total(scores))


def log_total(x: np.ndarray) -> float:
    """Return the log of the sum of exponentials over a vector, which is summed in float64."""
    largest = x.max()
    return float(largest + np.log(np.exp(x - largest).sum(dtype=np.float64)))
