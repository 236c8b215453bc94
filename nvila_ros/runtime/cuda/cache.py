"""Keys and values on a device, written by row numbers that a captured graph can read from memory.

Shapes: L tokens in this call, M rows that they may see, K kv heads, S head size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nvila_ros.models.decoder import KvCache
from nvila_ros.models.spec import DecoderSpec
from nvila_ros.runtime.checks import check_copy, check_truncation


class DeviceKvCache(KvCache):
    """`Cache` of one sequence; the decoder appends to it as to the reference's.

    Attributes:
        capacity: tokens that fit.
        rows_L: where the tokens of this call go, int64 on the device; None puts them behind those that are held.
        num_visible: rows that are returned where `rows_L` is given.
        graphs: captured steps over these very rows, by the number of visible rows; with how often each was asked for.
    """

    def __init__(self, spec: DecoderSpec, capacity: int, dtype: torch.dtype, device: torch.device) -> None:
        with device:
            super().__init__(spec, capacity, dtype=dtype)
        self.capacity = capacity
        self.rows_L: Tensor | None = None
        self.num_visible = 0
        self.graphs: dict[int, Any] = {}

    def append(self, layer: int, k_BKLS: Tensor, v_BKLS: Tensor) -> tuple[Tensor, Tensor]:
        """Store this call's rows and return all that it may see, (1, K, M, S) each."""
        if self.rows_L is None:
            return super().append(layer, k_BKLS, v_BKLS)
        k, v = self.k[layer], self.v[layer]
        k.index_copy_(2, self.rows_L, k_BKLS)
        v.index_copy_(2, self.rows_L, v_BKLS)
        return k[:, :, : self.num_visible], v[:, :, : self.num_visible]

    def truncate(self, length: int) -> None:
        """Drop all tokens from `length` on."""
        check_truncation(self, length)
        self.length = length

    @torch.inference_mode()
    def copy_prefix(self, source: DeviceKvCache, length: int) -> None:
        """Replace the content by the first `length` tokens of another cache, on the device."""
        check_copy(self, source, length)
        self.k[:, :, :, :length].copy_(source.k[:, :, :, :length])
        self.v[:, :, :, :length].copy_(source.v[:, :, :, :length])
        self.length = length
