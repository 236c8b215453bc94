"""Keys and values of earlier prompts, for prompts that begin alike.

Each token of a prompt has an identity: the id of text, and of a visual token a digest of its very values. Two prompts
share a prefix exactly as far as their identities are equal, so the same question about other pixels reuses nothing.
The number of caches bounds what is kept; which of them a new prompt continues is decided by what that saves and by what
it would overwrite.

Shapes: L tokens, G visual tokens, D decoder width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from nvila_ros.errors import NumericsError
from nvila_ros.generation.decode import check_finite
from nvila_ros.prompt.chat import PLACEHOLDER
from nvila_ros.runtime.contract import PREFILL_CHUNK, Cache, Engine, TopEngine

ROUND_ROWS = 256  # caches grow in steps, so that a prompt that is a little longer finds room
DIGEST_BYTES = 16


def identify(ids_L: np.ndarray, visual_GD: np.ndarray) -> np.ndarray:
    """Return the identities of a prompt's tokens, (L, 2) int64.

    Args:
        ids_L: with `PLACEHOLDER` for each visual token.
        visual_GD: float32, one row per placeholder.
    """
    keys_L2 = np.zeros((len(ids_L), 2), np.int64)
    keys_L2[:, 0] = ids_L
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=DIGEST_BYTES).digest() for row in visual_GD)
    keys_L2[ids_L == PLACEHOLDER] = np.frombuffer(digests, np.int64).reshape(-1, 2)
    return keys_L2


def shared_length(one_L2: np.ndarray, other_L2: np.ndarray) -> int:
    """Return the length of the common prefix of two sequences of identities."""
    length = min(len(one_L2), len(other_L2))
    differs = (one_L2[:length] != other_L2[:length]).any(axis=1)
    return int(differs.argmax()) if differs.any() else length


class CachedPrefix:
    """A cache and the identity of each token in it."""

    def __init__(self, engine: Engine, capacity: int) -> None:
        self._engine = engine
        self.cache: Cache = engine.new_cache(capacity)
        self.keys_L2 = np.zeros((0, 2), np.int64)
        self.used = 0  # when it was last used

    @property
    def length(self) -> int:
        """Tokens held."""
        return len(self.keys_L2)

    def append(self, embeds_LD: np.ndarray, keys_L2: np.ndarray) -> np.ndarray:
        """Append tokens and return the logits after the last one, (V,)."""
        logits_V = self._engine.forward(embeds_LD, self.cache)
        self.keys_L2 = np.concatenate([self.keys_L2, keys_L2])
        return logits_V

    def append_token(self, token: int) -> np.ndarray:
        """Append one token of text and return the logits after it, (V,)."""
        return self.append(self._engine.embed(np.array([token])), np.array([[token, 0]]))

    def append_top(self, engine: TopEngine, token: int) -> list[int]:
        """Append one token of text and return the likeliest ones after it, best first; `engine` is the prefix's own."""
        ids, logits = engine.forward_top(engine.embed(np.array([token])), self.cache)
        check_finite(logits)
        self.keys_L2 = np.concatenate([self.keys_L2, np.array([[token, 0]])])
        return ids.tolist()

    def prefill(self, embeds_LD: np.ndarray, keys_L2: np.ndarray, check: Callable[[], None]) -> np.ndarray:
        """Append the rest of a prompt that begins with what is held, calling `check` before each chunk.

        Returns:
            The logits after the last token, (V,); empty, (0,), where nothing was left to append.
        """
        logits_V = np.empty(0, np.float32)
        for start in range(self.length, len(keys_L2), PREFILL_CHUNK):
            check()
            end = start + PREFILL_CHUNK
            logits_V = self.append(embeds_LD[start:end], keys_L2[start:end])
        return logits_V

    def copy(self, source: CachedPrefix, length: int) -> None:
        """Hold the first `length` tokens of another prefix."""
        self.cache.copy_prefix(source.cache, length)
        self.keys_L2 = source.keys_L2[:length]

    def cut(self, length: int) -> None:
        """Forget all tokens from `length` on, and any rows beyond those that have an identity."""
        self.keys_L2 = self.keys_L2[:length]
        self.cache.truncate(len(self.keys_L2))


class PrefixCache:
    """At most `num_prefixes` prefixes; without any, every prompt is read in a new one."""

    def __init__(self, engine: Engine, num_prefixes: int) -> None:
        self._engine, self._num_prefixes = engine, num_prefixes
        self._prefixes: list[CachedPrefix] = []
        self._uses = itertools.count(1)

    def __len__(self) -> int:
        return len(self._prefixes)

    def find(self, keys_L2: np.ndarray) -> int:
        """Return how many tokens of a prompt some prefix holds."""
        return max((shared_length(prefix.keys_L2, keys_L2) for prefix in self._prefixes), default=0)

    @contextmanager
    def take(self, keys_L2: np.ndarray, num_rows: int) -> Iterator[CachedPrefix]:
        """Lend a prefix with room for `num_rows` that holds as much of a prompt as is cached, and nothing else."""
        prefix = self._choose(keys_L2, num_rows)
        try:
            yield prefix
        except NumericsError:
            prefix.cut(0)  # its keys and values may hold what is no number
            raise
        finally:
            prefix.cut(prefix.length)  # rows of branches, or of a call that failed, have no identity

    def _choose(self, keys_L2: np.ndarray, num_rows: int) -> CachedPrefix:
        """Return the prefix that is cheapest to continue.

        A prefix is cut back where it keeps the larger part of its tokens. Otherwise the shared part is copied over the
        least recently used prefix, which costs far less than a prefill.
        """
        best = max(self._prefixes, key=lambda prefix: shared_length(prefix.keys_L2, keys_L2), default=None)
        shared = shared_length(best.keys_L2, keys_L2) if best else 0
        prefix = best if best and shared >= len(best.keys_L2) - shared else self._victim()
        if prefix is None or prefix.cache.capacity < num_rows:
            prefix = self._replace(prefix, num_rows)
        if best is not None and prefix is not best:
            prefix.copy(best, shared)
        prefix.cut(shared)
        prefix.used = next(self._uses)
        return prefix

    def _victim(self) -> CachedPrefix | None:
        """Return the prefix to be overwritten, or None where there is room for one more, or none are kept."""
        is_full = 0 < self._num_prefixes == len(self._prefixes)
        return min(self._prefixes, key=lambda prefix: prefix.used) if is_full else None

    def _replace(self, old: CachedPrefix | None, num_rows: int) -> CachedPrefix:
        """Return an empty prefix that takes the place of another."""
        rounded = -(-num_rows // ROUND_ROWS) * ROUND_ROWS
        prefix = CachedPrefix(self._engine, max(num_rows, min(rounded, self._engine.spec.decoder.max_positions)))
        if self._num_prefixes:
            self._prefixes = [kept for kept in self._prefixes if kept is not old] + [prefix]
        return prefix
