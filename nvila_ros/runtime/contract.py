"""What a backend must do: run the three parts on numpy arrays.

One engine serves one thread. Arrays cross here as float32; an engine that keeps data on a device does so behind its
cache. Everything that decides (sampling, stopping, what to reuse) lies above this seam.

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
"""Most tokens of a prompt in one call: enough to fill a GPU and not to slow matrix products, and few enough that what
is asked to stop does so soon."""


class Source(Protocol):
    """What an engine is loaded from: an opened checkpoint, or what was built of one."""

    @property
    def spec(self) -> ModelSpec:
        """The shapes and choices."""
        ...

    def weights(self) -> Mapping[str, Weight]:
        """Return the tensors by `part.key`; each may be read anew when it is asked for."""
        ...


@dataclass(frozen=True, slots=True)
class Tree:
    """New tokens that are not one run behind all that a cache holds: several branches that share a prefix.

    A row of a cache is a place in it; where a token stands in its own sequence is its position, and of two branches
    the tokens at one position lie in two rows.

    Attributes:
        positions_L: (L,) int64, of each new token in its sequence.
        sees_LM: (L, M) bool, which rows each new token attends to, itself always among them, later ones never; M counts
            the new rows.
        wanted_R: (R,) int64, which of the new tokens logits are wanted of.
    """

    positions_L: np.ndarray
    sees_LM: np.ndarray
    wanted_R: np.ndarray


class Cache(Protocol):
    """Keys and values of tokens, allocated once; unless a `Tree` was appended, those of one sequence."""

    @property
    def length(self) -> int:
        """Tokens held."""
        ...

    @property
    def capacity(self) -> int:
        """Tokens that fit."""
        ...

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on; the prefix before it stays usable."""
        ...

    def copy_prefix(self, source: Any, length: int) -> None:
        """Hold the first `length` tokens of another cache of the same engine, and nothing else."""
        ...


class Engine(Protocol):
    """A loaded model."""

    @property
    def spec(self) -> ModelSpec:
        """The checkpoint's shapes and choices."""
        ...

    @property
    def precision(self) -> str:
        """What the weights and activations are computed in, such as `fp32`."""
        ...

    @property
    def batch_tiles(self) -> int:
        """Tiles that are best encoded in one call; between two calls a stop is looked for."""
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
        """Append L tokens, in a run behind all the cache holds, and return the logits after the last one, (V,)."""
        ...

    def forward_tree(self, embeds_LD: np.ndarray, cache: Any, tree: Tree) -> np.ndarray:
        """Append L tokens of several branches and return the logits after those wanted, (R, V)."""
        ...


@runtime_checkable
class TopEngine(Protocol):
    """An engine on a device, which finds the likeliest tokens there: of all logits a thousandth crosses to the host."""

    def embed(self, ids_L: np.ndarray) -> np.ndarray:
        """Return the embeddings of token ids, (L, D)."""
        ...

    def forward_top(self, embeds_LD: np.ndarray, cache: Any) -> tuple[np.ndarray, np.ndarray]:
        """Append L tokens as `Engine.forward` and return ids and logits of the likeliest next ones, best first."""
        ...

    def fetch_logits(self) -> np.ndarray:
        """Return all logits after the token appended last, (V,)."""
        ...
