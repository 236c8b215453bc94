"""Several sequences behind one prefix, in one cache and in few calls.

A branch is the list of its rows behind the prefix; a fork is a copy of that list, so that branches share what they have
in common. New tokens of all branches go through the decoder together: the mask lets each see the prefix and the rows of
its own branch, and nothing is copied.

Shapes: L new tokens, M rows of the cache with them, R tokens whose logits are wanted, D decoder width, V vocabulary.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np

from nvila_ros.generation.decode import log_total
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


@dataclass(frozen=True, slots=True)
class Followed:
    """How likely the token was that a sequence goes on with, and whether it is the likeliest there."""

    log_prob: float
    is_greedy: bool


def follow_row(logits_V: np.ndarray, token: int) -> Followed:
    """Return how likely a token is behind what these logits were told for."""
    return Followed(float(logits_V[token]) - log_total(logits_V), int(logits_V.argmax()) == token)


class TreeBatch:
    """The branches behind all that a cache holds now, and the tokens of theirs that wait for the next call."""

    def __init__(self, engine: Engine, cache: Cache) -> None:
        self._engine, self._cache = engine, cache
        self._prefix = cache.length
        self._ids: list[int] = []
        self._branches: list[tuple[int, ...]] = []  # of each waiting token, its branch's rows up to itself
        self._wanted: list[tuple[int, int | None]] = []  # which of the waiting, and the token that follows it if known
        self._logits: list[np.ndarray] = []
        self._followed: list[Followed] = []

    def add(self, branch: Branch, ids: list[int]) -> None:
        """Let tokens of a branch wait, the logits after the last of them to be told."""
        for token in ids[:-1]:
            self._add(branch, token)
        self._add(branch, ids[-1], is_wanted=True)

    def follow(self, branch: Branch, ids: list[int]) -> None:
        """Let a branch go on with all these tokens but the last; how likely each is behind the others is to be told.

        Of the first one, which follows what the branch holds already, it is not. No row of logits is kept: of many long
        sequences they would take gigabytes.
        """
        for token, following in itertools.pairwise(ids):
            self._add(branch, token, is_wanted=True, following=following)

    def grow(self) -> tuple[list[np.ndarray], list[Followed]]:
        """Append what waits; return the logits after what was added, (V,) each, and how likely what was followed is.

        Both since the last time, and in the order of the calls.
        """
        self._flush()
        told = self._logits, self._followed
        self._logits, self._followed = [], []
        return told

    def _add(self, branch: Branch, token: int, *, is_wanted: bool = False, following: int | None = None) -> None:
        if len(self._ids) == MAX_TOKENS or len(self._wanted) == MAX_WANTED:
            self._flush()
        branch.rows.append(self._cache.length + len(self._ids))
        if is_wanted:
            self._wanted.append((len(self._ids), following))
        self._ids.append(token)
        self._branches.append(tuple(branch.rows))

    def _flush(self) -> None:
        if not self._ids:
            return
        num_new = len(self._ids)
        sees_LM = np.zeros((num_new, self._cache.length + num_new), bool)
        sees_LM[:, : self._prefix] = True
        for k, rows in enumerate(self._branches):
            sees_LM[k, list(rows)] = True
        positions_L = np.array([self._prefix + len(rows) - 1 for rows in self._branches], np.int64)
        tree = Tree(positions_L, sees_LM, np.array([place for place, _ in self._wanted], np.int64))
        embeds_LD = self._engine.embed(np.array(self._ids))
        logits_RV = self._engine.forward_tree(embeds_LD, self._cache, tree)
        for logits_V, (_, following) in zip(logits_RV, self._wanted, strict=True):
            if following is None:
                self._logits.append(logits_V.copy())  # the row alone, not all that came with it
            else:
                self._followed.append(follow_row(logits_V, following))
        self._ids, self._branches, self._wanted = [], [], []
