"""ONNX Runtime on the CPU: the default backend, which needs neither a GPU nor torch.

The graphs are built in memory from the checkpoint and share its weights; nothing is written to disk or sent anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import ml_dtypes
import numpy as np

# Wheels from PyPI report usage to their vendor unless this is set before they load; nothing here uses the network.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as ort

from nvila_ros.export.graph import GraphBuilder, pack
from nvila_ros.export.parts import build_decoder, build_projector, build_vision
from nvila_ros.models.quantized import Weights, as_array, name_precision
from nvila_ros.models.shapes import EMBEDDING
from nvila_ros.models.spec import DecoderSpec
from nvila_ros.runtime.append import AppendCache, AppendEngine, NewTokens
from nvila_ros.runtime.contract import ModelSource

PROVIDERS = ["CPUExecutionProvider"]
INT4 = np.dtype(ml_dtypes.int4)


class OnnxRuntimeDecoder:
    """`Decoder` over one session, for any number of tokens."""

    def __init__(self, spec: DecoderSpec, weights: Weights, threads: int = 0) -> None:
        self._vocab_size = spec.vocab_size
        self._session = start_session(build_decoder(spec, weights), threads)

    def run(self, new: NewTokens, cache: AppendCache) -> np.ndarray:
        """Append new tokens to the cache and return the wanted logits, (R, V)."""
        start, end = cache.length, cache.length + len(new.embeds_LD)
        logits_RV = np.empty((len(new.rows_R), self._vocab_size), np.float32)
        inputs = {
            "embeds": new.embeds_LD,
            "cos": new.cos_LS,
            "sin": new.sin_LS,
            "mask": new.mask_LM,
            "rows": new.rows_R,
        }
        outputs = {"logits": logits_RV}
        for name, buffer in cache.buffer_by_name.items():
            inputs[f"past_{name}"], outputs[f"new_{name}"] = buffer[:start], buffer[start:end]
        binding = self._session.io_binding()
        bind(binding.bind_input, inputs)
        bind(binding.bind_output, outputs)
        self._session.run_with_iobinding(binding)
        return logits_RV


def bind(to: Callable[..., None], arrays: Mapping[str, np.ndarray]) -> None:
    """Bind arrays to inputs or outputs of a session, without a copy."""
    for name, array in arrays.items():
        to(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


class OnnxRuntimeEngine(AppendEngine):
    """`Engine` over three sessions."""

    def __init__(self, source: ModelSource, threads: int = 0) -> None:
        spec, weights = source.spec, source.weights()
        self.precision = name_precision(weights)
        self._vision = start_session(build_vision(spec.vision, weights), threads)
        self._projector = start_session(build_projector(spec.projector, spec.vision.grid, weights), threads)
        decoder = OnnxRuntimeDecoder(spec.decoder, weights, threads)
        super().__init__(spec, as_array(weights, EMBEDDING), decoder)

    def vision(self, tile_NCHW: np.ndarray) -> np.ndarray:
        """Return the features of tiles, (N, P, E)."""
        return self._vision.run(["feat"], {"tile": tile_NCHW})[0]

    def project(self, feat_NPE: np.ndarray) -> np.ndarray:
        """Return the visual tokens, (N, G, D)."""
        return self._projector.run(["visual"], {"feat": feat_NPE})[0]


def load(source: ModelSource, threads: int = 0) -> OnnxRuntimeEngine:
    """Load a checkpoint or build; `threads` 0 takes every core."""
    return OnnxRuntimeEngine(source, threads)


def start_session(builder: GraphBuilder, threads: int) -> ort.InferenceSession:
    """Return a session over a graph and its weights; `threads` 0 takes every core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Threads that sleep between the operators of a step wake too late for the next; threads that spin after a run
    # would take the cores from the camera's callbacks.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # This is the reference runtime: by default it would quantize the inputs of four-bit maps to eight bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    model = builder.finish(dict.fromkeys(builder.weights, 0))
    plain = {name: array for name, array in builder.weights.items() if array.dtype != INT4}
    values = [ort.OrtValue.ortvalue_from_numpy(array) for array in plain.values()]
    options.add_external_initializers(list(plain), values)
    packed = {name: pack(array) for name, array in builder.weights.items() if array.dtype == INT4}
    # The runtime takes no four-bit tensors from numpy: each is passed as a file in memory.
    for tensor in model.graph.initializer:
        if tensor.name in packed:
            next(entry for entry in tensor.external_data if entry.key == "location").value = tensor.name
    if packed:
        lengths = [len(data) for data in packed.values()]
        options.add_external_initializers_from_files_in_memory(list(packed), list(packed.values()), lengths)
    return ort.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS)
