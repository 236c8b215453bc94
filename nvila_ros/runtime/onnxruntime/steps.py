"""ONNX Runtime for calls of few tokens, most of them decode steps: arrays are bound once for many steps.

Binding the rows of every layer at each step is slow, since the weights read before have evicted everything else from
the processor's caches. Here a step's arrays keep their addresses. New rows are written to the cache's staging rows,
before its first row: attention does not depend on the order of rows, and the mask selects those that count. Rows are
read in blocks; those beyond the last are masked.

Shapes: L tokens in this call, M rows that are read, R tokens whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import weakref

import numpy as np

from nvila_ros.export.decoder import build_decoder
from nvila_ros.export.forms import ORT_FUSED
from nvila_ros.models.quantized import Weights
from nvila_ros.models.spec import DecoderSpec
from nvila_ros.runtime.append import STAGE_ROWS, AppendCache, NewTokens
from nvila_ros.runtime.onnxruntime.engine import bind, ort, start_session
from nvila_ros.runtime.rotary import HIDDEN

BLOCK_ROWS = 32


class StepDecoder:
    """`AppendDecoder` over one session, whose graph reads the cache in place."""

    def __init__(self, spec: DecoderSpec, weights: Weights, threads: int = 0) -> None:
        self._spec = spec
        self._session = start_session(build_decoder(spec, weights, ORT_FUSED), threads)
        self._key: tuple[object, ...] = ()
        self._step: _Step

    def run(self, new: NewTokens, cache: AppendCache) -> np.ndarray:
        """Append new tokens to the cache and return the wanted logits, (R, V)."""
        num_new = len(new.embeds_LD)
        if num_new > STAGE_ROWS:
            return self._run_once(new, cache)
        num_past = min(-(-cache.length // BLOCK_ROWS) * BLOCK_ROWS, cache.capacity)
        # A weak reference: it keeps no deleted cache alive, and does not equal another cache at the same address.
        key = (weakref.ref(cache), num_new, num_past, len(new.rows_R))
        if key != self._key:
            self._step = _Step(self._session, self._spec, cache, num_new, STAGE_ROWS + num_past, len(new.rows_R))
            self._key = key
        return self._step.run(new, cache)

    def _run_once(self, new: NewTokens, cache: AppendCache) -> np.ndarray:
        """Do the same for any number of tokens, whose rows are written in place."""
        start, end = cache.length, cache.length + len(new.embeds_LD)
        binding = self._session.io_binding()
        logits_RV = np.empty((len(new.rows_R), self._spec.vocab_size), np.float32)
        half = self._spec.head_size // 2
        inputs = {"embeds": new.embeds_LD[None], "mask": new.mask_LM, "rows": new.rows_R}
        inputs |= {"cos": new.cos_LS[:, :half].copy(), "sin": new.sin_LS[:, :half].copy()}
        buffers = cache.buffer_by_name
        bind(binding.bind_input, inputs | {f"all_{name}": buffer[:end] for name, buffer in buffers.items()})
        rows = {f"new_{name}": buffer[start:end].reshape(1, end - start, -1) for name, buffer in buffers.items()}
        bind(binding.bind_output, rows | {"logits": logits_RV})
        self._session.run_with_iobinding(binding)
        return logits_RV


class _Step:
    """A call of one size over one cache, bound once."""

    def __init__(
        self,
        session: ort.InferenceSession,
        spec: DecoderSpec,
        cache: AppendCache,
        num_new: int,
        num_read: int,
        num_wanted: int,
    ) -> None:
        self._session, self._binding, self._vocab_size = session, session.io_binding(), spec.vocab_size
        self._embeds = np.empty((1, num_new, spec.width), np.float32)
        self._cos, self._sin = (np.empty((num_new, spec.head_size // 2), np.float32) for _ in range(2))
        self._mask = np.full((num_new, num_read), HIDDEN)
        self._rows = np.empty(num_wanted, np.int64)
        inputs = {"embeds": self._embeds, "cos": self._cos, "sin": self._sin, "mask": self._mask, "rows": self._rows}
        staged = cache.staged_by_name
        bind(self._binding.bind_input, inputs | {f"all_{name}": rows[:num_read] for name, rows in staged.items()})
        rows = {f"new_{name}": rows[:num_new].reshape(1, num_new, -1) for name, rows in staged.items()}
        bind(self._binding.bind_output, rows)

    def run(self, new: NewTokens, cache: AppendCache) -> np.ndarray:
        """Append new tokens to the cache and return the wanted logits, (R, V)."""
        num_new, start, half = len(new.embeds_LD), cache.length, self._cos.shape[1]
        self._embeds[0], self._rows[:] = new.embeds_LD, new.rows_R
        self._cos[:], self._sin[:] = new.cos_LS[:, :half], new.sin_LS[:, :half]
        self._mask[:, :num_new] = new.mask_LM[:, start:]
        self._mask[:, STAGE_ROWS : STAGE_ROWS + start] = new.mask_LM[:, :start]
        self._mask[:, STAGE_ROWS + start :] = HIDDEN  # the cache may have been truncated
        logits_RV = np.empty((len(new.rows_R), self._vocab_size), np.float32)
        self._binding.bind_ortvalue_output("logits", ort.OrtValue.ortvalue_from_numpy(logits_RV))
        self._session.run_with_iobinding(self._binding)
        cache.take_staged(num_new)
        return logits_RV
