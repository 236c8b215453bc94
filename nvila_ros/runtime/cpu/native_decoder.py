"""The quantized language model on our own kernels: one call in C++ takes tokens and returns logits.

A decode step reads every weight once, which no runtime does at the speed of the memory: between the products of a graph
operators are looked up, rows are copied, and threads wait. `native/decoder.h` packs the weights in the order in which
it reads them, once for steps and prompts alike. It is compiled with the package, for several kinds of processors; where
it is missing, or has no kernel for a weight, ONNX Runtime and OpenVINO compute the same.

Inputs of quantized products are rounded to eight bits: by the scale that came with the weight, else by the largest
number of each group of inputs. All else is float32.

Shapes: K inputs, N outputs, G groups of inputs, L tokens in this call, R tokens whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping

import numpy as np

from nvila_ros.errors import ShapeError
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight, as_array
from nvila_ros.models.spec import DecoderSpec
from nvila_ros.runtime.append import AppendCache, NewTokens
from nvila_ros.runtime.cpu.native_library import DecoderCall, MatrixView, Span, Spec, check, libraries, span

MAX_INPUT_GROUP = 128
"""Most inputs that share a scale derived while the model runs."""
MAX_GROUP_INPUTS = 65536
"""Most inputs whose products are summed in 32 bits."""
LANES = 16  # outputs of a tile, and what every width must be a multiple of
MATRICES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
VECTORS = (
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "self_attn.q_proj.bias",
    "self_attn.k_proj.bias",
    "self_attn.v_proj.bias",
)
SAME_INPUT = (slice(0, 3), slice(4, 6))  # of MATRICES
HEAD_LAYER = -1
MAX_HEADS_PER_KV = 64


class UnknownFormError(Exception):
    """There is no kernel for the form of a weight."""


class NativeDecoder:
    """`Decoder` in C++, for weights of four and eight bits. One thread uses it at a time.

    Args:
        spec: shapes.
        weights: by `part.key`.
        head: of the logits.
        threads: how many compute, the caller's among them; 0 takes every core. They sleep between calls.
        library: one of `libraries()`, by default the fastest.

    Raises:
        UnknownFormError: there is no library for this processor, or no kernel for these shapes or weights.
        ShapeError: the weights are not of the spec's shapes.
    """

    def __init__(
        self,
        spec: DecoderSpec,
        weights: Mapping[str, Weight],
        head: Weight,
        threads: int = 0,
        library: ctypes.CDLL | None = None,
    ) -> None:
        library = library or next(iter(libraries()), None)
        if library is None:
            raise UnknownFormError("this processor has no kernels, or they were not compiled")
        check_kernels(spec)
        self._library, self._spec = library, spec
        self._handle = ctypes.c_void_p()
        sizes = (getattr(spec, field[0]) for field in Spec._fields_)
        num_threads = threads or len(os.sched_getaffinity(0))
        self._check(library.nvila_decoder_new(ctypes.byref(Spec(*sizes)), num_threads, ctypes.byref(self._handle)))
        # Not at the interpreter's exit, which ends its threads in any case.
        weakref.finalize(self, library.nvila_decoder_delete, self._handle).atexit = False
        for layer in range(spec.num_layers):
            self._set_layer(layer, weights)
        self._set_matrix(HEAD_LAYER, 0, head)
        self._set_vector(HEAD_LAYER, 0, as_array(weights, "llm.model.norm.weight"))

    def run(self, new: NewTokens, cache: AppendCache) -> np.ndarray:
        """Append new tokens to the cache and return the wanted logits, (R, V) float32.

        Raises:
            ShapeError: an array, a row or the room in the cache does not fit the call.
        """
        num_new = len(new.embeds_LD)
        table = (num_new, self._spec.head_size)
        embeds_LD = _as_input("embeds", new.embeds_LD, (num_new, self._spec.width))
        cos_LS, sin_LS = _as_input("cos", new.cos_LS, table), _as_input("sin", new.sin_LS, table)
        mask_LM = _as_input("mask", new.mask_LM, (num_new, cache.length + num_new))
        rows_R = _as_input("rows", new.rows_R, (len(new.rows_R),), np.int64)
        logits_RV = np.empty((len(rows_R), self._spec.vocab_size), np.float32)
        address, size, stride = cache.memory
        call = DecoderCall(
            *(span(array) for array in (embeds_LD, cos_LS, sin_LS, mask_LM, rows_R)),
            Span(address, size),
            stride,
            cache.capacity,
            cache.length,
            num_new,
            span(logits_RV),
        )
        self._check(self._library.nvila_decoder_run(self._handle, ctypes.byref(call)))
        return logits_RV

    def _set_layer(self, layer: int, weights: Mapping[str, Weight]) -> None:
        stem = f"llm.model.layers.{layer}"
        forms = [self._set_matrix(layer, slot, weights[f"{stem}.{name}.weight"]) for slot, name in enumerate(MATRICES)]
        for part in SAME_INPUT:
            if len(set(forms[part])) > 1:
                raise UnknownFormError(f"{MATRICES[part]} of layer {layer} take the same input in different forms")
        for slot, name in enumerate(VECTORS):
            if f"{stem}.{name}" in weights:
                self._set_vector(layer, slot, as_array(weights, f"{stem}.{name}"))

    def _set_matrix(self, layer: int, slot: int, weight: Weight) -> tuple[float, ...]:
        """Pack a matrix and return its form, in which matrices of one input must agree."""
        if isinstance(weight, np.ndarray):
            raise UnknownFormError("a matrix is not quantized")
        num_groups, input_scale = _input_form(weight)
        values_KN, (scales, has_halves) = _values(weight), _scales(weight)
        view = MatrixView(
            span(values_KN),
            Span(scales.ctypes.data, scales.nbytes),
            *values_KN.strides,
            *values_KN.shape,
            len(scales),
            num_groups,
            4 if isinstance(weight, Int4Weight) else 8,
            has_halves,
            input_scale,
        )
        self._check(self._library.nvila_decoder_set_matrix(self._handle, layer, slot, ctypes.byref(view)))
        return num_groups, input_scale, len(scales), view.bits, has_halves

    def _set_vector(self, layer: int, slot: int, weight: Weight) -> None:
        vector = np.ascontiguousarray(weight, np.float32)
        data, size = vector.ctypes.data, vector.size
        self._check(self._library.nvila_decoder_set_vector(self._handle, layer, slot, data, size))

    def _check(self, status: int) -> None:
        check(self._library, status)


def check_kernels(spec: DecoderSpec) -> None:
    """Check that there are kernels for these shapes.

    Raises:
        UnknownFormError: there are none.
    """
    if any(size % LANES for size in (spec.width, spec.mlp_width, spec.head_size)):
        raise UnknownFormError(f"widths must be multiples of {LANES}, got {spec}")
    if spec.num_heads * spec.head_size != spec.width:
        raise UnknownFormError(f"the heads must fill the width, got {spec}")
    if spec.num_heads // spec.num_kv_heads > MAX_HEADS_PER_KV:
        raise UnknownFormError(f"at most {MAX_HEADS_PER_KV} heads may share keys, got {spec}")


def _as_input(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: type = np.float32) -> np.ndarray:
    """Return an array contiguous and of its dtype, itself where it is already.

    Raises:
        ShapeError: it has another shape.
    """
    if array.shape != shape:
        raise ShapeError(f"{name} must be {shape} for this call, got {array.shape}")
    return np.ascontiguousarray(array, dtype)


def _values(weight: Int4Weight | Int8Weight) -> np.ndarray:
    """Return values, (K, N) int8, in whichever order they lie, without gaps."""
    values_KN = weight.values_KN
    if values_KN.dtype != np.int8 or values_KN.ndim != 2:
        raise UnknownFormError(f"values must be a matrix of int8, got {values_KN.dtype} {values_KN.shape}")
    has_gaps = not (values_KN.flags.c_contiguous or values_KN.flags.f_contiguous)
    return np.ascontiguousarray(values_KN) if has_gaps else values_KN


def _scales(weight: Int4Weight | Int8Weight) -> tuple[np.ndarray, bool]:
    """Return scales, (G, N), and whether they are float16, as those of a build can be: half of what a step reads."""
    if isinstance(weight, Int8Weight):
        return np.ascontiguousarray(weight.scale_N[None], np.float32), False
    halves = np.ascontiguousarray(weight.scale_GN, np.float16)
    if np.array_equal(halves, weight.scale_GN):
        return halves, True
    return np.ascontiguousarray(weight.scale_GN, np.float32), False


def _input_form(weight: Int4Weight | Int8Weight) -> tuple[int, float]:
    """Return in how many groups a matrix's inputs are rounded, and by which scale, 0 where each group has its own.

    Raises:
        UnknownFormError: the inputs do not fill the blocks that kernels read.
    """
    num_inputs, num_outputs = weight.values_KN.shape
    step = 8 if isinstance(weight, Int4Weight) else 4
    size = weight.group_size if isinstance(weight, Int4Weight) else num_inputs
    if size % step:
        raise UnknownFormError(f"groups must be multiples of {step} inputs, got {size} of {num_inputs} x {num_outputs}")
    if isinstance(weight, Int8Weight) and weight.input_scale is not None:
        if num_inputs > MAX_GROUP_INPUTS:
            raise UnknownFormError(f"at most {MAX_GROUP_INPUTS} inputs may share a scale, got {num_inputs}")
        return 1, weight.input_scale
    size = max(part for part in range(step, min(size, MAX_INPUT_GROUP) + 1, step) if size % part == 0)
    return num_inputs // size, 0.0
