"""The fast engine on a CPU: OpenVINO for the tower, kernels of our own for the language model.

OpenVINO runs the tower and the projector; where the processor has a matrix unit, our kernels run the layers of a
quantized tower. Our kernels run a quantized decoder; where there are none for a processor or
a weight, ONNX Runtime runs calls of few tokens, which are bound by reading the weights, and OpenVINO calls of many.
These two share one `AppendCache` and never run at once, but each keeps the decoder in the form that its kernels read. A
float decoder is run by ONNX Runtime alone.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, G visual tokens, R tokens whose logits are wanted, D
decoder width, V vocabulary.
"""

from __future__ import annotations

import logging
import os
from collections import ChainMap
from collections.abc import Mapping

import numpy as np

from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight, as_array
from nvila_ros.models.shapes import EMBEDDING, HEAD
from nvila_ros.models.spec import DecoderSpec, ModelSpec
from nvila_ros.runtime.append import AppendCache, AppendDecoder, AppendEngine, NewTokens
from nvila_ros.runtime.contract import ModelSource
from nvila_ros.runtime.cpu.huge_pages import use_huge_pages
from nvila_ros.runtime.cpu.native_decoder import NativeDecoder, UnknownFormError
from nvila_ros.runtime.cpu.native_tower import NativeVision, has_tower
from nvila_ros.runtime.onnxruntime.engine import OnnxRuntimeDecoder
from nvila_ros.runtime.onnxruntime.steps import StepDecoder
from nvila_ros.runtime.openvino.models import DECODER_PROBE, TOWER_PROBE, OpenvinoDecoder, OpenvinoVision
from nvila_ros.runtime.openvino.weights import WeightStore
from nvila_ros.runtime.rounded import round_int8

_log = logging.getLogger(__name__)

MANY_TOKENS = 6
"""Tokens in a call from which OpenVINO is faster than ONNX Runtime, measured on two cores of a Zen 4."""


class TwoDecoders:
    """`AppendDecoder` that passes short calls to one decoder and long calls to another, over the same cache."""

    def __init__(self, few: AppendDecoder, many: AppendDecoder) -> None:
        self._few, self._many = few, many

    def run(self, new: NewTokens, cache: AppendCache) -> np.ndarray:
        """Append new tokens to the cache and return the wanted logits, (R, V)."""
        decoder = self._many if len(new.embeds_LD) >= MANY_TOKENS else self._few
        return decoder.run(new, cache)


class CpuEngine(AppendEngine):
    """`Engine` over OpenVINO for vision and a decoder of one or two runtimes."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Weight], threads: int = 0) -> None:
        self.precision = _name_precision(weights)
        store = WeightStore()
        super().__init__(spec, *_load_decoder(spec, weights, store, threads))
        self._tower = _load_vision(spec, weights, store, threads)
        use_huge_pages()  # our kernels use their own; ONNX Runtime's decode step is a seventh shorter

    def vision(self, tile_NCHW: np.ndarray) -> np.ndarray:
        """Return the features of tiles, (N, P, E)."""
        return self._tower.vision(tile_NCHW)

    def project(self, feat_NPE: np.ndarray) -> np.ndarray:
        """Return the visual tokens, (N, G, D)."""
        return self._tower.project(feat_NPE)


def load(source: ModelSource, threads: int = 0) -> CpuEngine:
    """Load a checkpoint in fp32 or a build with its quantized weights.

    Args:
        source: where the weights come from.
        threads: how many compute, the caller's among them; 0 takes every core. They sleep between calls, so a ROS
            executor beside them has the cores to itself then, and shares them while a call runs.
    """
    return load_quantized(source.spec, source.weights(), threads)


def load_quantized(spec: ModelSpec, weights: Mapping[str, Weight], threads: int = 0) -> CpuEngine:
    """Load weights of which any linear map may be quantized; see `load`.

    Inputs of quantized products are quantized to eight bits: by the scale that came with the weight, else by the
    largest number of each group. Beside a quantized decoder, a float head is quantized to eight bits by row, and
    embeddings are rounded to fp16.
    """
    return CpuEngine(spec, weights, threads)


def _load_vision(
    spec: ModelSpec, weights: Mapping[str, Weight], store: WeightStore, threads: int
) -> OpenvinoVision | NativeVision:
    if has_tower() and isinstance(weights[TOWER_PROBE], Int8Weight):
        try:
            return NativeVision(spec, weights, store, min(threads, len(os.sched_getaffinity(0))))
        except UnknownFormError as error:
            _log.info("the tower is left to OpenVINO: %s", error)
    return OpenvinoVision(spec, weights, store, threads)


def _load_decoder(
    spec: ModelSpec, weights: Mapping[str, Weight], store: WeightStore, threads: int
) -> tuple[np.ndarray, AppendDecoder]:
    """Return the embeddings, (V, D), in fp16 beside a quantized decoder, and the decoder."""
    if isinstance(weights[DECODER_PROBE], np.ndarray):
        return as_array(weights, EMBEDDING), OnnxRuntimeDecoder(spec.decoder, weights, threads)
    # The largest table first, whose float32 form then lies beside nothing else.
    table_VD = as_array(weights, EMBEDDING)
    head = weights.get(HEAD, table_VD)
    head = round_int8(head) if isinstance(head, np.ndarray) else head
    table_VD = store.hold(table_VD, np.float16)
    with_head = ChainMap({HEAD: head}, weights)  # type: ignore[arg-type]
    return table_VD, _load_quantized_decoder(spec.decoder, with_head, head, store, threads)


def _load_quantized_decoder(
    spec: DecoderSpec, weights: Mapping[str, Weight], head: Weight, store: WeightStore, threads: int
) -> AppendDecoder:
    try:
        # More threads than cores would wait for one another.
        return NativeDecoder(spec, weights, head, min(threads, len(os.sched_getaffinity(0))))
    except UnknownFormError as error:
        _log.info("the language model is left to ONNX Runtime and OpenVINO: %s", error)
    few = StepDecoder(spec, weights, threads)  # first, since it needs most memory while it loads
    return TwoDecoders(few, OpenvinoDecoder(spec, weights, head, store, threads))


def _name_precision(weights: Mapping[str, Weight]) -> str:
    """Return the numeric formats of tower and decoder, from one weight of each."""
    names = {np.ndarray: "fp32", Int4Weight: "w4a8", Int8Weight: "w8a8"}
    return "+".join(dict.fromkeys(names[type(weights[key])] for key in (TOWER_PROBE, DECODER_PROBE)))
