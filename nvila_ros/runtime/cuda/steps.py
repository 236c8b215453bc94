"""Decode steps as CUDA graphs: hundreds of kernels for a token, started by one call.

A graph repeats the very operations of its capture on the same addresses. So a step reads its embedding and its position
from memory, and sees a fixed number of rows, of which a mask that is computed from the position hides those behind it.
Rows grow by `ROWS`, each size with a graph of its own; a graph belongs to one cache and goes with it.

Shapes: D decoder width, M rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nvila_ros.models.decoder import Decoder
from nvila_ros.runtime.cuda.cache import DeviceKvCache

ROWS = 256
EAGER_STEPS = 3
"""Steps over a size before it is captured, which takes as long as two: a yes or no is over by then."""
Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Captures what a function does on the device, and returns what repeats it."""


class DecodeStep:
    """One token at a time over any cache; inputs and outputs always lie at the same addresses.

    Args:
        llm: on the device.
        num_top: likeliest tokens that are found there.
        capture: None runs every step eagerly.

    Attributes:
        logits_V: after the last step, float32.
        top: the likeliest logits and their ids, best first.
    """

    def __init__(self, llm: Decoder, num_top: int, capture: Capture | None) -> None:
        weight = llm.model["norm"].weight
        self._llm, self._capture = llm, capture
        self._embed_BLD = torch.zeros(1, 1, llm.spec.width, dtype=weight.dtype, device=weight.device)
        self._position_L = torch.zeros(1, dtype=torch.int64, device=weight.device)
        self.logits_V = torch.zeros(llm.spec.vocab_size, device=weight.device)
        self.top = (
            torch.zeros(num_top, device=weight.device),
            torch.zeros(num_top, dtype=torch.int64, device=weight.device),
        )

    def run(self, embed_D: Tensor, cache: DeviceKvCache) -> None:
        """Append one token; its logits are in `logits_V` and `top` until the next step."""
        self._embed_BLD.copy_(embed_D.view(1, 1, -1))
        self._position_L.fill_(cache.length)
        length, num_visible = cache.length, min(cache.capacity, -(-(cache.length + 1) // ROWS) * ROWS)
        cache.rows_L, cache.num_visible = self._position_L, num_visible
        try:
            self._prepare(cache, num_visible)()
        finally:
            cache.rows_L = None
        cache.length = length + 1

    def _prepare(self, cache: DeviceKvCache, num_visible: int) -> Callable[[], None]:
        """Return a captured step, or one to run eagerly as long as the size is new."""
        held: Any = cache.graphs.get(num_visible, 0)
        if callable(held):
            return held
        if self._capture is None or held < EAGER_STEPS:
            cache.graphs[num_visible] = held + 1
            return lambda: self._compute(cache)
        cache.graphs[num_visible] = self._capture(lambda: self._compute(cache))
        return cache.graphs[num_visible]

    def _compute(self, cache: DeviceKvCache) -> None:
        rows_M = torch.arange(cache.num_visible, device=self._position_L.device)
        sees_LM = (rows_M <= self._position_L)[None]
        hidden_BLD = self._llm(self._embed_BLD, cache, self._position_L, sees_LM)
        self.publish(hidden_BLD[0, -1])

    def publish(self, hidden_D: Tensor) -> None:
        """Write the logits behind a token, and the likeliest of them, to where they are read."""
        self.logits_V.copy_(self._llm.head(hidden_D))
        torch.topk(self.logits_V, len(self.top[0]), out=self.top)


def capture_cuda(compute: Callable[[], None]) -> Callable[[], None]:
    """Capture on the current device; first run once beside the stream, so that kernels are chosen and loaded."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        compute()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        compute()
    return graph.replay
