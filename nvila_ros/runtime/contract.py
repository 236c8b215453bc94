"""What a backend implements: the three parts of the model on numpy arrays.

One engine serves one thread. Arrays are float32; an engine that keeps data on a device hides it behind its cache.
Sampling, stopping and reuse are decided above this interface.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, G visual tokens, L tokens in this call, M tokens in
the cache after it, R tokens whose logits are wanted, D decoder width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from nvila_ros.models.quantized import Weight
from nvila_ros.models.spec import ModelSpec

PREFILL_CHUNK = 512
"""Most tokens of a prompt in one call: enough to fill a GPU and to keep matrix products fast, and few enough that a
cancelled query stops soon."""


class ModelSource(Protocol):
    """What an engine is loaded from: an opened checkpoint or build."""

    @property
    def spec(self) -> ModelSpec:
        """The shapes and choices."""
        ...

    def weights(self) -> Mapping[str, Weight]:
        """Return the tensors by `part.key`; each may be read from disk at every access."""
        ...


@dataclass(frozen=True, slots=True)
class Tree:
    """New tokens of several branches that share a prefix, for tree attention.

    Each token has a row in the cache and a position in its own sequence: tokens of two branches may have the same
    position, but never the same row.

    Attributes:
        positions_L: (L,) int64, position of each new token in its sequence.
        sees_LM: (L, M) bool, the rows that each new token attends to: always itself, never later ones. M counts the new
            rows too.
        wanted_R: (R,) int64, the new tokens whose logits are wanted, each once.
    """

    positions_L: np.ndarray
    sees_LM: np.ndarray
    wanted_R: np.ndarray


class Cache(Protocol):
    """Keys and values of the tokens of one sequence, or of a `Tree`; allocated once."""

    @property
    def length(self) -> int:
        """Tokens held."""
        ...

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        ...

    def truncate(self, length: int) -> None:
        """Drop all tokens from `length` on; the prefix before it stays usable.

        Raises:
            ShapeError: fewer tokens are held.
        """
        ...

    def copy_prefix(self, source: Any, length: int) -> None:
        """Replace the content by the first `length` tokens of another cache of the same engine.

        Raises:
            ShapeError: the source holds fewer, or they do not fit.
        """
        ...


class Engine(Protocol):
    """A loaded model."""

    @property
    def spec(self) -> ModelSpec:
        """The checkpoint's shapes and choices."""
        ...

    @property
    def precision(self) -> str:
        """Numeric format of weights and activations, such as `fp32` or `w8a8+w4a16`."""
        ...

    @property
    def batch_tiles(self) -> int:
        """Tiles to encode in one call; a cancelled query stops between two calls."""
        ...

    def vision(self, tile_NCHW: np.ndarray) -> np.ndarray:
        """Return the features of tiles in [-1, 1], (N, P, E)."""
        ...

    def project(self, feat_NPE: np.ndarray) -> np.ndarray:
        """Return the visual tokens, (N, G, D)."""
        ...

    def embed(self, ids_L: np.ndarray) -> np.ndarray:
        """Return the embeddings of token ids, (L, D)."""
        ...

    def new_cache(self, capacity: int) -> Cache:
        """Return an empty cache for `capacity` tokens."""
        ...

    def forward(self, embeds_LD: np.ndarray, cache: Any) -> np.ndarray:
        """Append L tokens to the sequence in the cache and return the logits after the last one, (V,).

        Raises:
            ShapeError: the cache or the model's positions have no room for them.
        """
        ...

    def forward_tree(self, embeds_LD: np.ndarray, cache: Any, tree: Tree) -> np.ndarray:
        """Append L tokens of several branches and return the wanted logits, (R, V).

        Raises:
            ShapeError: the tree does not fit the cache, or a token attends to a later one.
        """
        ...


@runtime_checkable
class TopEngine(Protocol):
    """An engine that finds the likeliest tokens on its device, so that a thousandth of the logits is downloaded."""

    def embed(self, ids_L: np.ndarray) -> np.ndarray:
        """Return the embeddings of token ids, (L, D)."""
        ...

    def forward_top(self, embeds_LD: np.ndarray, cache: Any) -> tuple[np.ndarray, np.ndarray]:
        """Append L tokens as `Engine.forward` and return ids and logits of the likeliest next ones, best first."""
        ...

    def fetch_logits(self) -> np.ndarray:
        """Return all logits after the token appended last, (V,)."""
        ...
