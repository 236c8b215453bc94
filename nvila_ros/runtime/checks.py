"""Checks of engine calls, the same for every backend: what is written beyond a cache would be lost, or a crash.

Each raises `ShapeError` with the rule and the values.
"""

from __future__ import annotations

import numpy as np

from nvila_ros.errors import ShapeError
from nvila_ros.runtime.contract import Cache, Tree


def check_truncation(cache: Cache, length: int) -> None:
    """Check that a cache can be cut back to `length` tokens."""
    if not 0 <= length <= cache.length:
        raise ShapeError(f"a cache can be cut to at most the {cache.length} tokens that it holds, got {length}")


def check_copy(cache: Cache, source: Cache, length: int) -> None:
    """Check that a cache can take the first `length` tokens of another."""
    most = min(source.length, cache.capacity)
    if not 0 <= length <= most:
        raise ShapeError(
            f"at most {most} tokens can be copied, of {source.length} into {cache.capacity} places, got {length}"
        )


def check_append(cache: Cache, num_new: int) -> None:
    """Check that a cache has room for new tokens, and that there is one."""
    if num_new < 1:
        raise ShapeError("a call must append at least one token, got none")
    if cache.length + num_new > cache.capacity:
        raise ShapeError(f"the cache holds {cache.capacity} tokens, {cache.length + num_new} are needed")


def check_tree(cache: Cache, num_new: int, num_positions: int, tree: Tree) -> None:
    """Check a tree of new tokens against the cache that they are appended to, and against the model's positions."""
    check_append(cache, num_new)
    end = cache.length + num_new
    if tree.positions_L.shape != (num_new,) or tree.sees_LM.shape != (num_new, end):
        raise ShapeError(
            f"a tree of {num_new} tokens behind {cache.length} has positions ({num_new},) and a mask "
            f"({num_new}, {end}), got {tree.positions_L.shape} and {tree.sees_LM.shape}"
        )
    check_positions(tree.positions_L, num_positions)
    if np.triu(tree.sees_LM[:, cache.length :], 1).any():
        raise ShapeError("a token may not attend to a later one, but the tree's mask has such a row")
    _check_wanted(tree.wanted_R, num_new)


def check_positions(positions_L: np.ndarray, num_positions: int) -> None:
    """Check that the model has these positions."""
    if len(positions_L) and not 0 <= positions_L.min() <= positions_L.max() < num_positions:
        raise ShapeError(
            f"positions must be in [0, {num_positions}), got {positions_L.min()} to {positions_L.max()}; "
            "ask with a shorter prompt"
        )


def _check_wanted(wanted_R: np.ndarray, num_new: int) -> None:
    if len(wanted_R) and not 0 <= wanted_R.min() <= wanted_R.max() < num_new:
        raise ShapeError(f"logits can be wanted of tokens in [0, {num_new}), got {wanted_R.tolist()}")
    if len(np.unique(wanted_R)) != len(wanted_R):
        raise ShapeError(f"the logits of a token are wanted once, got {wanted_R.tolist()}")
