"""Prefill and greedy decode over any engine, token by token, so that a caller can stop between any two.

Shapes: L tokens, D decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nvila_ros.runtime.contract import Cache, Engine

PREFILL_CHUNK = 512  # tokens between two looks at whether to stop; long enough not to slow the matrix products


def prefill(engine: Engine, embeds_LD: np.ndarray, cache: Cache, check: Callable[[], None]) -> np.ndarray:
    """Append a prompt in chunks, calling `check` before each; return the logits after it, (V,)."""
    for start in range(0, len(embeds_LD), PREFILL_CHUNK):
        check()
        logits_V = engine.forward(embeds_LD[start : start + PREFILL_CHUNK], cache)
    return logits_V


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


def score_choices(
    engine: Engine, logits_V: np.ndarray, cache: Cache, choices: Sequence[Sequence[int]], check: Callable[[], None]
) -> np.ndarray:
    """Return how likely each choice is as the whole answer, normalised over the choices; float64.

    Every choice is read from the same prefix, which is left as it was found.

    Args:
        engine: runs the decoder.
        logits_V: the logits after the prefix.
        cache: holds the prefix.
        choices: the token ids of each choice, its stop token included.
        check: called before each choice.
    """
    length = cache.length
    scores = np.empty(len(choices))
    for i, ids in enumerate(choices):
        check()
        after_V, scores[i] = logits_V, 0.0
        for k, token in enumerate(ids):
            scores[i] += log_softmax(after_V)[token]
            if k + 1 < len(ids):
                after_V = engine.forward(engine.embed(np.array([token])), cache)
        cache.truncate(length)
    return np.exp(log_softmax(scores))


def score_sequences(logits_V: np.ndarray, rows: Iterator[np.ndarray], sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """Return how likely each sequence of tokens is to follow, normalised over the sequences; float64.

    Args:
        logits_V: the logits where all of them begin.
        rows: of each sequence in turn, the logits after each of its tokens but the last, (V,) each.
        sequences: token ids, the stop token included.
    """
    first_V = log_softmax(logits_V)
    scores = np.array([first_V[ids[0]] + sum(log_softmax(next(rows))[token] for token in ids[1:]) for ids in sequences])
    return np.exp(log_softmax(scores))


def log_softmax(x: np.ndarray) -> np.ndarray:
    """Return the log of the softmax over a vector, in float64."""
    shifted = x.astype(np.float64) - x.max()
    return shifted - np.log(np.exp(shifted).sum())
