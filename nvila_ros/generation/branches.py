"""Several sequences behind one prefix, in one cache and in few calls.

A branch is the list of its rows behind the prefix; a fork is a copy of that list, so that branches share what they have
in common. New tokens of all branches go through the decoder together: the mask lets each see the prefix and the rows of
its own branch, and nothing is copied.

Shapes: L new tokens, M rows of the cache with them, R tokens whose logits are wanted, D decoder width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nvila_ros.runtime.contract import Cache, Engine, Tree

MAX_TOKENS = 512  # in one call; longer ones do not make the matrix products faster
MAX_WANTED = 64  # logits in one call, each as long as the vocabulary


@dataclass(slots=True)
class Branch:
    """One sequence; `rows` are where its tokens lie in the cache, in order, behind the prefix."""

    rows: list[int] = field(default_factory=list)

    def fork(self) -> Branch:
        """Return a branch that shares all tokens so far and goes its own way from here."""
        return Branch(list(self.rows))


class Grove:
    """The branches behind all that a cache holds now, and the tokens of theirs that wait for the next call."""

    def __init__(self, engine: Engine, cache: Cache) -> None:
        self._engine, self._cache = engine, cache
        self._prefix = cache.length
        self._ids: list[int] = []
        self._branches: list[tuple[int, ...]] = []  # of each waiting token, its branch's rows up to itself
        self._wanted: list[int] = []
        self._logits: list[np.ndarray] = []

    def add(self, branch: Branch, ids: list[int], *, num_wanted: int) -> None:
        """Let tokens of a branch wait, the logits after the last `num_wanted` of them to be told."""
        for k, token in enumerate(ids):
            if len(self._ids) == MAX_TOKENS or len(self._wanted) == MAX_WANTED:
                self._flush()
            branch.rows.append(self._cache.length + len(self._ids))
            if k >= len(ids) - num_wanted:
                self._wanted.append(len(self._ids))
            self._ids.append(token)
            self._branches.append(tuple(branch.rows))

    def grow(self) -> np.ndarray:
        """Append what waits; return the logits that were wanted since the last time, in the order of adding, (R, V)."""
        self._flush()
        logits, self._logits = self._logits, []
        return np.concatenate(logits)

    def _flush(self) -> None:
        if not self._ids:
            return
        num_new = len(self._ids)
        sees_LM = np.zeros((num_new, self._cache.length + num_new), bool)
        sees_LM[:, : self._prefix] = True
        for k, rows in enumerate(self._branches):
            sees_LM[k, list(rows)] = True
        positions_L = np.array([self._prefix + len(rows) - 1 for rows in self._branches], np.int64)
        tree = Tree(positions_L, sees_LM, np.array(self._wanted, np.int64))
        embeds_LD = self._engine.embed(np.array(self._ids))
        logits_RV = self._engine.forward_tree(embeds_LD, self._cache, tree)
        self._logits.append(logits_RV)
        self._ids, self._branches, self._wanted = [], [], []
