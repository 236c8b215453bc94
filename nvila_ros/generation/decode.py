"""Greedy decoding over any engine, and the probabilities of whole answers.

Shapes: L tokens, D decoder width, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from nvila_ros.errors import NumericsError
from nvila_ros.runtime.contract import Cache, Engine


def decode_greedy(
    engine: Engine, logits_V: np.ndarray, cache: Cache, *, stop_ids: Collection[int], never: np.ndarray
) -> Iterator[int]:
    """Yield the most likely tokens up to a stop token, which is left out; without any this never ends.

    Args:
        engine: runs the decoder.
        logits_V: the logits after the prompt.
        cache: holds the prompt.
        stop_ids: the stop tokens.
        never: ids that must not be sampled, such as those of media tokens inside the table.
    """
    while (token := most_likely(logits_V, never)) not in stop_ids:
        yield token
        logits_V = engine.forward(engine.embed(np.array([token])), cache)


def check_finite(values: np.ndarray) -> None:
    """Refuse logits that are no numbers: nothing that follows from them is an answer.

    Raises:
        NumericsError: a value is NaN or infinite.
    """
    if not (np.isfinite(values.min()) and np.isfinite(values.max())):  # both pass a NaN on
        kinds = {"NaN": np.isnan(values).sum(), "infinite": np.isinf(values).sum()}
        found = " and ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
        raise NumericsError(
            f"every logit must be a finite number, got {found} of {values.size}; weights, runtime or precision are "
            "broken: compare them by nvila parity, or choose another backend"
        )


def most_likely(logits_V: np.ndarray, never: np.ndarray) -> int:
    """Return the id of the greatest logit among those that may be sampled.

    Raises:
        NumericsError: a logit is NaN or infinite.
    """
    check_finite(logits_V)
    if never.size:
        logits_V = logits_V.copy()
        logits_V[never] = -np.inf
    return int(logits_V.argmax())


def score_sequences(logits_V: np.ndarray, log_probs: Iterator[float], sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the probability of each sequence of tokens, normalised over the sequences; float64.

    Args:
        logits_V: the logits where all of them begin.
        log_probs: of each sequence in turn, the log-probability of each of its tokens but the first.
        sequences: token ids, the stop token included.
    """
    total = log_total(logits_V)
    scores = np.array([logits_V[ids[0]] - total + sum(itertools.islice(log_probs, len(ids) - 1)) for ids in sequences])
    return np.exp(scores - log_total(scores))


def log_total(x: np.ndarray) -> float:
    """Return the log of the sum of exponentials over a vector, summed in float64.

    Raises:
        NumericsError: a value is NaN or infinite.
    """
    check_finite(x)
    largest = x.max()
    return float(largest + np.log(np.exp(x - largest).sum(dtype=np.float64)))
