"""Several sequences behind one prefix, in one cache and in few calls.

A branch is the list of its rows behind the prefix; a fork copies that list, so that branches share the rows they have
in common. New tokens of all branches go through the decoder together (tree attention): a mask shows each the prefix and
the rows of its own branch, and no key or value is copied.

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
    """One sequence; `rows` are the places of its tokens in the cache, in order, behind the prefix."""

    rows: list[int] = field(default_factory=list)

    def fork(self) -> Branch:
        """Return a branch that shares all tokens so far and may continue otherwise."""
        return Branch(list(self.rows))


@dataclass(frozen=True, slots=True)
class TokenScore:
    """The log-probability of a given token after those before it, and whether it is the likeliest one there."""

    log_prob: float
    is_greedy: bool


def score_token(logits_V: np.ndarray, token: int) -> TokenScore:
    """Return the score of a token, given the logits before it."""
    return TokenScore(float(logits_V[token]) - log_total(logits_V), int(logits_V.argmax()) == token)


class TreeBatch:
    """The branches behind all that a cache holds now, and their tokens that wait for the next forward pass."""

    def __init__(self, engine: Engine, cache: Cache) -> None:
        self._engine, self._cache = engine, cache
        self._prefix = cache.length
        self._ids: list[int] = []
        self._branches: list[tuple[int, ...]] = []  # of each waiting token, its branch's rows up to itself
        self._wanted: list[tuple[int, int | None]] = []  # index of a waiting token, and the token to score behind it
        self._logits: list[np.ndarray] = []
        self._scores: list[TokenScore] = []

    def add(self, branch: Branch, ids: list[int]) -> None:
        """Append tokens to a branch; `forward` returns the logits after the last of them."""
        for token in ids[:-1]:
            self._add(branch, token)
        self._add(branch, ids[-1], is_wanted=True)

    def score(self, branch: Branch, ids: list[int]) -> None:
        """Append all tokens but the last to a branch; `forward` returns the score of each token but the first.

        The first token follows what the branch holds already, so the caller has the logits for it. No row of logits is
        kept: of many long sequences they would take gigabytes.
        """
        for token, following in itertools.pairwise(ids):
            self._add(branch, token, is_wanted=True, following=following)

    def forward(self) -> tuple[list[np.ndarray], list[TokenScore]]:
        """Run the decoder over what waits.

        Returns:
            The logits of each `add`, (V,), and the scores of each `score`, since the last call, in order.
        """
        self._flush()
        result = self._logits, self._scores
        self._logits, self._scores = [], []
        return result

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
                self._logits.append(logits_V.copy())  # the row alone, not the whole batch
            else:
                self._scores.append(score_token(logits_V, following))
        self._ids, self._branches, self._wanted = [], [], []
