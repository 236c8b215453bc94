"""What a backend must do: run the three parts on numpy arrays.

One engine serves one thread. Arrays cross here as float32; an engine that keeps data on a device does so behind its
cache. Everything that decides (sampling, stopping, what to reuse) lies above this seam.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, G visual tokens, L tokens in this call, D decoder
width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from nvila_ros.models.quantized import Weight
from nvila_ros.models.spec import ModelSpec


class Source(Protocol):
    """What an engine is loaded from: an opened checkpoint, or what was built of one."""

    @property
    def spec(self) -> ModelSpec:
        """The shapes and choices."""
        ...

    def weights(self) -> Mapping[str, Weight]:
        """Return the tensors by `part.key`; each may be read anew when it is asked for."""
        ...


class Cache(Protocol):
    """Keys and values of one sequence, allocated once."""

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

    def forward(self, embeds_LD: np.ndarray, cache: Cache) -> np.ndarray:
        """Append L tokens to the cache and return the logits after the last one, (V,)."""
        ...
