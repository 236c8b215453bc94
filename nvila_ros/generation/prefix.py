"""Keys and values of prompts that were read before, for prompts that begin alike.

Each token of a prompt has an identity: the id of text, and of a visual token a digest of its very values. Two prompts
share a prefix exactly as far as their identities are equal, so the same question about other pixels reuses nothing.
What is kept is bounded by a number of caches; which of them a new prompt goes on in is decided by what it spares and by
what it would destroy.

Shapes: L tokens, G visual tokens, D decoder width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

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
    """Return how many identities two sequences begin with alike."""
    length = min(len(one_L2), len(other_L2))
    differs = (one_L2[:length] != other_L2[:length]).any(axis=1)
    return int(differs.argmax()) if differs.any() else length


class CachedPrefix:
    """A cache and the identity of each token in it."""

    def __init__(self, engine: Engine, capacity: int) -> None:
        self._engine = engine
        self.cache: Cache = engine.new_cache(capacity)
        self.keys_L2 = np.zeros((0, 2), np.int64)
        self.used = 0  # when it was last asked for

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
        """Append one token of text and return the likeliest ones after it, best first; `engine` is this trunk's own."""
        ids, _ = engine.forward_top(engine.embed(np.array([token])), self.cache)
        self.keys_L2 = np.concatenate([self.keys_L2, np.array([[token, 0]])])
        return ids.tolist()

    def prefill(self, embeds_LD: np.ndarray, keys_L2: np.ndarray, check: Callable[[], None]) -> np.ndarray:
        """Append what it lacks of a prompt that begins with what it holds, calling `check` before each chunk.

        Returns:
            the logits after the last token, (V,); none, (0,), where nothing was lacking.
        """
        logits_V = np.empty(0, np.float32)
        for start in range(self.length, len(keys_L2), PREFILL_CHUNK):
            check()
            end = start + PREFILL_CHUNK
            logits_V = self.append(embeds_LD[start:end], keys_L2[start:end])
        return logits_V

    def copy(self, source: CachedPrefix, length: int) -> None:
        """Hold the first `length` tokens of another trunk."""
        self.cache.copy_prefix(source.cache, length)
        self.keys_L2 = source.keys_L2[:length]

    def cut(self, length: int) -> None:
        """Forget all tokens from `length` on, and any rows beyond those that have an identity."""
        self.keys_L2 = self.keys_L2[:length]
        self.cache.truncate(len(self.keys_L2))


class PrefixCache:
    """At most `num_trunks` trunks; without any, every prompt is read anew in a trunk of its own."""

    def __init__(self, engine: Engine, num_trunks: int) -> None:
        self._engine, self._num_trunks = engine, num_trunks
        self._trunks: list[CachedPrefix] = []
        self._uses = itertools.count(1)

    def __len__(self) -> int:
        return len(self._trunks)

    def find(self, keys_L2: np.ndarray) -> int:
        """Return how many tokens of a prompt some trunk holds."""
        return max((shared_length(trunk.keys_L2, keys_L2) for trunk in self._trunks), default=0)

    @contextmanager
    def take(self, keys_L2: np.ndarray, num_rows: int) -> Iterator[CachedPrefix]:
        """Lend a trunk with room for `num_rows` that holds as much of a prompt as is known, and nothing else."""
        trunk = self._choose(keys_L2, num_rows)
        try:
            yield trunk
        finally:
            trunk.cut(trunk.length)  # rows of branches, or of a call that failed, have no identity

    def _choose(self, keys_L2: np.ndarray, num_rows: int) -> CachedPrefix:
        """Return the trunk that costs least to go on in.

        A trunk is cut back where it keeps the larger part of its tokens. Otherwise the known prefix is copied into the
        trunk that was not used for longest, which costs far less than reading it again.
        """
        best = max(self._trunks, key=lambda trunk: shared_length(trunk.keys_L2, keys_L2), default=None)
        shared = shared_length(best.keys_L2, keys_L2) if best else 0
        trunk = best if best and shared >= len(best.keys_L2) - shared else self._victim()
        if trunk is None or trunk.cache.capacity < num_rows:
            trunk = self._replace(trunk, num_rows)
        if best is not None and trunk is not best:
            trunk.copy(best, shared)
        trunk.cut(shared)
        trunk.used = next(self._uses)
        return trunk

    def _victim(self) -> CachedPrefix | None:
        """Return the trunk to be overwritten, or None where there is room for one more or none are kept."""
        is_full = 0 < self._num_trunks == len(self._trunks)
        return min(self._trunks, key=lambda trunk: trunk.used) if is_full else None

    def _replace(self, old: CachedPrefix | None, num_rows: int) -> CachedPrefix:
        """Return an empty trunk that stands in the place of another."""
        rounded = -(-num_rows // ROUND_ROWS) * ROUND_ROWS
        trunk = CachedPrefix(self._engine, max(num_rows, min(rounded, self._engine.spec.decoder.max_positions)))
        if self._num_trunks:
            self._trunks = [kept for kept in self._trunks if kept is not old] + [trunk]
        return trunk
