"""ONNX Runtime on the CPU: the default backend, which needs neither a GPU nor torch.

The graphs are drawn in memory from the checkpoint and share its weights; nothing is written to disk or sent anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import ml_dtypes
import numpy as np

# Wheels from PyPI report usage to their vendor unless they are told before they load; nothing here uses the network.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from nvila_ros.export.graph import GraphPen, pack
from nvila_ros.export.parts import draw_decoder, draw_projector, draw_vision
from nvila_ros.models.quantized import as_array, name_precision
from nvila_ros.models.spec import DecoderSpec
from nvila_ros.runtime.contract import Source
from nvila_ros.runtime.rotary import causal_mask, rotary_tables

PROVIDERS = ["CPUExecutionProvider"]
INT4 = np.dtype(ml_dtypes.int4)


class AppendCache:
    """Token-major buffers that the decoder reads its past from and writes its new rows behind."""

    def __init__(self, spec: DecoderSpec, capacity: int) -> None:
        shape = (capacity, spec.num_kv_heads, spec.head_size)
        self.buffer_by_name = {
            f"{key}_{i}": np.empty(shape, np.float32) for i in range(spec.num_layers) for key in "kv"
        }
        self.capacity = capacity
        self.length = 0

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        assert 0 <= length <= self.length, f"cannot cut {self.length} tokens to {length}"
        self.length = length


class OnnxRuntimeEngine:
    """`Engine` over three sessions."""

    def __init__(self, source: Source, threads: int = 0) -> None:
        self.spec = source.spec
        weights = source.weights()
        self.precision = name_precision(weights)
        self._vision = _session(draw_vision(self.spec.vision, weights), threads)
        self._projector = _session(draw_projector(self.spec.projector, self.spec.vision.grid, weights), threads)
        self._decoder = _session(draw_decoder(self.spec.decoder, weights), threads)
        self._embedding_VD = as_array(weights, "llm.model.embed_tokens.weight")
        self._cos, self._sin = rotary_tables(self.spec.decoder, self.spec.decoder.max_positions)

    def vision(self, tile_NCHW: np.ndarray) -> np.ndarray:
        """Return the features of tiles, (N, P, E)."""
        return self._vision.run(["feat"], {"tile": tile_NCHW})[0]

    def project(self, feat_NPE: np.ndarray) -> np.ndarray:
        """Return the visual tokens, (N, G, D)."""
        return self._projector.run(["visual"], {"feat": feat_NPE})[0]

    def embed(self, ids_L: np.ndarray) -> np.ndarray:
        """Return the embeddings of token ids, (L, D)."""
        return self._embedding_VD[ids_L].astype(np.float32, copy=False)

    def new_cache(self, capacity: int) -> AppendCache:
        """Return an empty cache for `capacity` tokens."""
        return AppendCache(self.spec.decoder, capacity)

    def forward(self, embeds_LD: np.ndarray, cache: AppendCache) -> np.ndarray:
        """Append L tokens to the cache and return the logits after the last one, (V,)."""
        start, end = cache.length, cache.length + len(embeds_LD)
        assert end <= cache.capacity, f"cache holds {cache.capacity} tokens, {end} needed"
        inputs = {
            "embeds": np.ascontiguousarray(embeds_LD, np.float32),
            "cos": self._cos[start:end],
            "sin": self._sin[start:end],
            "mask": causal_mask(end - start, end),
        }
        binding = self._decoder.io_binding()
        logits_V = np.empty(self.spec.decoder.vocab_size, np.float32)
        for name, array in inputs.items():
            _bind(binding.bind_input, name, array)
        for name, buffer in cache.buffer_by_name.items():
            _bind(binding.bind_input, f"past_{name}", buffer[:start])
            _bind(binding.bind_output, f"new_{name}", buffer[start:end])
        _bind(binding.bind_output, "logits", logits_V)
        self._decoder.run_with_iobinding(binding)
        cache.length = end
        return logits_V


def load(source: Source, threads: int = 0) -> OnnxRuntimeEngine:
    """Load a checkpoint or build; `threads` 0 takes every core."""
    return OnnxRuntimeEngine(source, threads)


def _session(pen: GraphPen, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # A thread that spins while it waits takes its core from the camera's callbacks.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # This is the reference runtime: by default the inputs of four-bit maps are rounded to eight bits as well.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    model = pen.finish(dict.fromkeys(pen.weights, 0))
    plain = {name: array for name, array in pen.weights.items() if array.dtype != INT4}
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in plain.values()]
    options.add_external_initializers(list(plain), values)
    packed = {name: pack(array) for name, array in pen.weights.items() if array.dtype == INT4}
    # Four-bit tensors have no numpy form that the runtime takes: each is handed over as a file in memory.
    for tensor in model.graph.initializer:
        if tensor.name in packed:
            next(entry for entry in tensor.external_data if entry.key == "location").value = tensor.name
    if packed:
        lengths = [len(data) for data in packed.values()]
        options.add_external_initializers_from_files_in_memory(list(packed), list(packed.values()), lengths)
    return ort.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)


def _bind(bind: Callable[..., None], name: str, array: np.ndarray) -> None:
    """Bind memory in place; the caller keeps `array` alive until the run ends."""
    bind(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
