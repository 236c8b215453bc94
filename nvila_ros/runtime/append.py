"""What the engines on a CPU share: one kind of cache, and what their decoders are given.

Shapes: L tokens in this call, M tokens in the cache after it, R tokens whose logits are wanted, D decoder width, K kv
heads, S head size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nvila_ros.errors import ShapeError
from nvila_ros.models.spec import DecoderSpec, ModelSpec
from nvila_ros.runtime.checks import check_append, check_copy, check_positions, check_tree, check_truncation
from nvila_ros.runtime.contract import Tree
from nvila_ros.runtime.rotary import RotaryRows, additive_mask, causal_mask

STAGE_ROWS = 8
"""Rows before the first of a cache, into which a decoder may write new ones that belong behind the last."""


class AppendCache:
    """Token-major keys and values: a decoder of any runtime reads the past rows and writes the new ones behind them.

    Attributes:
        buffer_by_name: `k_0`, `v_0` and so on by layer, (capacity, K, S) float32 each.
        staged_by_name: the same with the staging rows before them, (8 + capacity, K, S).
        capacity: tokens that fit.
        length: tokens held.
    """

    def __init__(self, spec: DecoderSpec, capacity: int) -> None:
        names = [f"{key}_{i}" for i in range(spec.num_layers) for key in "kv"]
        # Zeros, since rows without a token may be read and masked: the product with a NaN would be one.
        self._rows = np.zeros((len(names), STAGE_ROWS + capacity, spec.num_kv_heads, spec.head_size), np.float32)
        self.staged_by_name = dict(zip(names, self._rows, strict=True))
        self.buffer_by_name = {name: rows[STAGE_ROWS:] for name, rows in self.staged_by_name.items()}
        self.capacity = capacity
        self.length = 0

    @property
    def memory(self) -> tuple[int, int, int]:
        """Address of `k_0`, floats from there to the end of the last buffer, and floats from one buffer to the next."""
        stride = self._rows[0].size
        staged = stride // self._rows.shape[1] * STAGE_ROWS
        return self._rows.ctypes.data + staged * self._rows.itemsize, self._rows.size - staged, stride

    def truncate(self, length: int) -> None:
        """Drop all tokens from `length` on."""
        check_truncation(self, length)
        self.length = length

    def copy_prefix(self, source: AppendCache, length: int) -> None:
        """Replace the content by the first `length` tokens of another cache."""
        check_copy(self, source, length)
        places = slice(STAGE_ROWS, STAGE_ROWS + length)
        self._rows[:, places] = source._rows[:, places]
        self.length = length

    def take_staged(self, count: int) -> None:
        """Copy the first staging rows behind the tokens held; the caller changes the length."""
        start = STAGE_ROWS + self.length
        self._rows[:, start : start + count] = self._rows[:, :count]


@dataclass(frozen=True, slots=True)
class NewTokens:
    """The tokens that a decoder appends; arrays are contiguous float32, `rows_R` is int64.

    Attributes:
        embeds_LD: embeddings.
        cos_LS: cosines of the rotary angles.
        sin_LS: sines of the same.
        mask_LM: added to each score: 0, or -1e9 where a token may not attend.
        rows_R: the tokens whose logits are wanted, at least one, each once.
    """

    embeds_LD: np.ndarray
    cos_LS: np.ndarray
    sin_LS: np.ndarray
    mask_LM: np.ndarray
    rows_R: np.ndarray


class AppendDecoder(Protocol):
    """A language model that appends its keys and values to an `AppendCache`."""

    def run(self, new: NewTokens, cache: AppendCache) -> np.ndarray:
        """Append new tokens to the cache and return the wanted logits, (R, V).

        The caller changes the cache's length.
        """
        ...


class AppendEngine:
    """The language model's half of an `Engine`, over an `AppendDecoder`."""

    batch_tiles = 1  # one tile uses all cores

    def __init__(self, spec: ModelSpec, embedding_VD: np.ndarray, decoder: AppendDecoder) -> None:
        self.spec = spec
        self._embedding_VD, self._decoder = embedding_VD, decoder
        self._rotary = RotaryRows(spec.decoder)

    def embed(self, ids_L: np.ndarray) -> np.ndarray:
        """Return the embeddings of token ids, (L, D)."""
        return self._embedding_VD[ids_L].astype(np.float32, copy=False)

    def new_cache(self, capacity: int) -> AppendCache:
        """Return an empty cache for `capacity` tokens."""
        return AppendCache(self.spec.decoder, capacity)

    def forward(self, embeds_LD: np.ndarray, cache: AppendCache) -> np.ndarray:
        """Append L tokens to the cache and return the logits after the last one, (V,)."""
        start, num_new = cache.length, len(embeds_LD)
        check_append(cache, num_new)
        positions_L = np.arange(start, start + num_new)
        check_positions(positions_L, self._rotary.num_positions)
        mask_LM = causal_mask(num_new, start + num_new)
        return self._append(embeds_LD, cache, positions_L, mask_LM, np.array([num_new - 1]))[0]

    def forward_tree(self, embeds_LD: np.ndarray, cache: AppendCache, tree: Tree) -> np.ndarray:
        """Append L tokens of several branches and return the wanted logits, (R, V)."""
        check_tree(cache, len(embeds_LD), self._rotary.num_positions, tree)
        # No runtime takes a product of no rows.
        rows_R = tree.wanted_R if len(tree.wanted_R) else np.zeros(1, np.int64)
        logits_RV = self._append(embeds_LD, cache, tree.positions_L, additive_mask(tree.sees_LM), rows_R)
        return logits_RV[: len(tree.wanted_R)]

    def _append(
        self,
        embeds_LD: np.ndarray,
        cache: AppendCache,
        positions_L: np.ndarray,
        mask_LM: np.ndarray,
        rows_R: np.ndarray,
    ) -> np.ndarray:
        shape = (len(embeds_LD), self.spec.decoder.width)
        if embeds_LD.shape != shape:
            raise ShapeError(f"embeddings must be {shape}, got {embeds_LD.shape}")
        embeds_LD = np.ascontiguousarray(embeds_LD, np.float32)
        new = NewTokens(embeds_LD, *self._rotary(positions_L), mask_LM, rows_R.astype(np.int64))
        logits_RV = self._decoder.run(new, cache)
        cache.length += len(embeds_LD)
        return logits_RV
