"""What the engines on a CPU share: one kind of cache, and how their decoders are told of new tokens.

Shapes: L tokens in this call, M tokens in the cache after it, R tokens whose logits are wanted, D decoder width, K kv
heads, S head size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nvila_ros.models.spec import DecoderSpec, ModelSpec
from nvila_ros.runtime.contract import Tree
from nvila_ros.runtime.rotary import additive_mask, causal_mask, rotary_tables

STAGE_ROWS = 8
"""Rows before the first of a cache, where a decoder may give new ones that belong behind the last."""


class AppendCache:
    """Token-major buffers that a decoder reads its past from and writes its new rows behind, whichever runtime it is.

    Attributes:
        buffer_by_name: `k_0`, `v_0` and so on by layer, (capacity, K, S) float32 each.
        staged_by_name: the same with the stage before it, (8 + capacity, K, S).
        capacity: tokens that fit.
        length: tokens held.
    """

    def __init__(self, spec: DecoderSpec, capacity: int) -> None:
        names = [f"{key}_{i}" for i in range(spec.num_layers) for key in "kv"]
        # Zeros, since rows that no token has may be read, and masked: what is masked must at least be a number.
        self._rows = np.zeros((len(names), STAGE_ROWS + capacity, spec.num_kv_heads, spec.head_size), np.float32)
        self.staged_by_name = dict(zip(names, self._rows, strict=True))
        self.buffer_by_name = {name: rows[STAGE_ROWS:] for name, rows in self.staged_by_name.items()}
        self.capacity = capacity
        self.length = 0

    @property
    def placement(self) -> tuple[int, int]:
        """Address of the first buffer, and floats from one to the next: `k_0`, `v_0`, `k_1` and so on."""
        return self._rows[0, STAGE_ROWS:].ctypes.data, self._rows.strides[0] // self._rows.itemsize

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        assert 0 <= length <= self.length, f"cannot cut {self.length} tokens to {length}"
        self.length = length

    def copy_prefix(self, source: AppendCache, length: int) -> None:
        """Hold the first `length` tokens of another cache."""
        assert length <= min(source.length, self.capacity), f"cannot take {length} of {source.length} tokens"
        places = slice(STAGE_ROWS, STAGE_ROWS + length)
        self._rows[:, places] = source._rows[:, places]
        self.length = length

    def take_staged(self, count: int) -> None:
        """Write the stage's first rows behind the tokens held; the length is the caller's to change."""
        start = STAGE_ROWS + self.length
        self._rows[:, start : start + count] = self._rows[:, :count]


@dataclass(frozen=True, slots=True)
class NewTokens:
    """What a decoder is told of the tokens that it is to append; all float32, contiguous, but `rows_R`, int64.

    Attributes:
        embeds_LD: their embeddings.
        cos_LS: cosines of their rotary angles.
        sin_LS: sines of the same.
        mask_LM: what is added to each score: 0, or far below where a token may not look.
        rows_R: which of them logits are wanted of, at least one.
    """

    embeds_LD: np.ndarray
    cos_LS: np.ndarray
    sin_LS: np.ndarray
    mask_LM: np.ndarray
    rows_R: np.ndarray


class Decoder(Protocol):
    """A language model that appends to an `AppendCache`."""

    def run(self, new: NewTokens, cache: AppendCache) -> np.ndarray:
        """Write the rows of new tokens behind those that the cache holds and return the wanted logits, (R, V).

        The cache's length is the caller's to change.
        """
        ...


class AppendEngine:
    """The language model's half of an `Engine`, over a decoder that appends."""

    batch_tiles = 1  # a CPU is busy with one

    def __init__(self, spec: ModelSpec, embedding_VD: np.ndarray, decoder: Decoder) -> None:
        self.spec = spec
        self._embedding_VD, self._decoder = embedding_VD, decoder
        self._cos, self._sin = rotary_tables(spec.decoder, spec.decoder.max_positions)

    def embed(self, ids_L: np.ndarray) -> np.ndarray:
        """Return the embeddings of token ids, (L, D)."""
        return self._embedding_VD[ids_L].astype(np.float32, copy=False)

    def new_cache(self, capacity: int) -> AppendCache:
        """Return an empty cache for `capacity` tokens."""
        return AppendCache(self.spec.decoder, capacity)

    def forward(self, embeds_LD: np.ndarray, cache: AppendCache) -> np.ndarray:
        """Append L tokens to the cache and return the logits after the last one, (V,)."""
        start, num_new = cache.length, len(embeds_LD)
        place = slice(start, start + num_new)
        mask_LM = causal_mask(num_new, start + num_new)
        return self._append(embeds_LD, cache, place, mask_LM, np.array([num_new - 1]))[0]

    def forward_tree(self, embeds_LD: np.ndarray, cache: AppendCache, tree: Tree) -> np.ndarray:
        """Append L tokens of several branches and return the logits after those wanted, (R, V)."""
        assert not np.triu(tree.sees_LM[:, cache.length :], 1).any(), "a token sees a later one"
        # No runtime is made for products of no rows.
        rows_R = tree.wanted_R if len(tree.wanted_R) else np.zeros(1, np.int64)
        logits_RV = self._append(embeds_LD, cache, tree.positions_L, additive_mask(tree.sees_LM), rows_R)
        return logits_RV[: len(tree.wanted_R)]

    def _append(
        self,
        embeds_LD: np.ndarray,
        cache: AppendCache,
        positions: slice | np.ndarray,
        mask_LM: np.ndarray,
        rows_R: np.ndarray,
    ) -> np.ndarray:
        end = cache.length + len(embeds_LD)
        assert end <= cache.capacity, f"cache holds {cache.capacity} tokens, {end} needed"
        embeds_LD = np.ascontiguousarray(embeds_LD, np.float32)
        new = NewTokens(embeds_LD, self._cos[positions], self._sin[positions], mask_LM, rows_R.astype(np.int64))
        logits_RV = self._decoder.run(new, cache)
        cache.length = end
        return logits_RV
