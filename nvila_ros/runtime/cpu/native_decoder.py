"""The quantized language model by kernels of our own: one call in C++ takes tokens and gives logits.

A decode step reads every weight once, which no runtime does at the speed of the memory: between its products a graph's
operators are looked up, rows are moved, and threads wait. `native/decoder.cpp` packs the weights in the order in which
it reads them, once for steps and prompts alike. It is compiled with the package, for several kinds of processors; where
it is missing, or does not know a weight's form, ONNX Runtime and OpenVINO do the same work.

Activations that meet integers are rounded to eight bits: by the scale that came with the weight, else by the largest of
each group of inputs. All else is float32.

Shapes: K inputs, N outputs, G groups of inputs, L tokens in this call, R tokens whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

import nvila_ros
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight, as_array
from nvila_ros.models.spec import DecoderSpec
from nvila_ros.runtime.append import AppendCache, NewTokens

_log = logging.getLogger(__name__)

MOST_GROUP = 128
"""Most inputs that share a scale where it is found while the model runs."""
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
MOST_SHARING = 64  # query heads of a key and value head
FLAGS_BY_LIBRARY = {
    "avx512vnni": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"},
    "avxvnni": {"avx_vnni", "avx2", "f16c", "fma"},
    "avx2": {"avx2", "f16c", "fma"},
    "dotprod": {"asimddp"},
}
"""What the system must say of a processor for each library, the fastest first."""
CPUINFO = Path("/proc/cpuinfo")


class _Spec(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("width", "num_layers", "num_heads", "num_kv_heads", "head_size")),
        *((name, ctypes.c_int32) for name in ("mlp_width", "vocab_size")),
        ("norm_eps", ctypes.c_float),
    ]


class _Matrix(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("values", "scales")),
        *((name, ctypes.c_int64) for name in ("stride_k", "stride_n")),
        *((name, ctypes.c_int32) for name in ("num_inputs", "num_outputs", "num_groups", "num_input_groups")),
        *((name, ctypes.c_int32) for name in ("bits", "has_half_scales")),
        ("input_scale", ctypes.c_float),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("embeds", "cos", "sin", "mask", "rows", "cache")),
        *((name, ctypes.c_int64) for name in ("stride", "start")),
        *((name, ctypes.c_int32) for name in ("num_new", "num_wanted")),
        ("logits", ctypes.c_void_p),
    ]


LAYOUT = ctypes.sizeof(_Spec) << 20 | ctypes.sizeof(_Matrix) << 10 | ctypes.sizeof(_Call)


class UnknownFormError(Exception):
    """No kernel knows the form of a weight."""


class NativeDecoder:
    """`Decoder` in C++, for weights of four and eight bits.

    Args:
        spec: shapes.
        weights: by `part.key`.
        head: of the logits.
        threads: how many compute, the caller's among them; 0 takes every core. They sleep between calls.
        library: one of `libraries()`, by default the fastest.

    Raises:
        UnknownFormError: there is no library for this processor, or no kernel for these shapes or weights.
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
        if any(size % LANES for size in (spec.width, spec.mlp_width, spec.head_size)):
            raise UnknownFormError(f"widths must be multiples of {LANES}, got {spec}")
        if spec.num_heads // spec.num_kv_heads > MOST_SHARING:
            raise UnknownFormError(f"at most {MOST_SHARING} heads may share keys, got {spec}")
        self._library, self._spec = library, spec
        self._handle = ctypes.c_void_p()
        sizes = (getattr(spec, field[0]) for field in _Spec._fields_)
        num_threads = threads or len(os.sched_getaffinity(0))
        self._check(library.nvila_decoder_new(ctypes.byref(_Spec(*sizes)), num_threads, ctypes.byref(self._handle)))
        # Not at the interpreter's exit: in a forked child its threads would be waited for in vain.
        weakref.finalize(self, library.nvila_decoder_delete, self._handle).atexit = False
        for layer in range(spec.num_layers):
            self._set_layer(layer, weights)
        self._set_matrix(HEAD_LAYER, 0, head)
        self._set_vector(HEAD_LAYER, 0, as_array(weights, "llm.model.norm.weight"))

    def run(self, new: NewTokens, cache: AppendCache) -> np.ndarray:
        """Write the rows of new tokens behind those that the cache holds and return the wanted logits, (R, V)."""
        logits_RV = np.empty((len(new.rows_R), self._spec.vocab_size), np.float32)
        told = (new.embeds_LD, new.cos_LS, new.sin_LS, new.mask_LM, new.rows_R)
        num_new, end = len(new.embeds_LD), cache.length + len(new.embeds_LD)
        table = (num_new, self._spec.head_size)
        shapes = ((num_new, self._spec.width), table, table, (num_new, end), new.rows_R.shape)
        assert all(array.flags.c_contiguous for array in told)
        assert tuple(array.shape for array in told) == shapes, f"a call of {num_new} tokens, {end} in all: {shapes}"
        assert ((new.rows_R >= 0) & (new.rows_R < num_new)).all(), f"{new.rows_R} of {num_new} tokens"
        assert len(set(new.rows_R.tolist())) == len(new.rows_R), "each token has its logits once"
        call = _Call(
            *(array.ctypes.data for array in told),
            *cache.placement,
            cache.length,
            len(new.embeds_LD),
            len(new.rows_R),
            logits_RV.ctypes.data,
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
        """Pack a matrix and return its form: what maps of one input must have in common."""
        if isinstance(weight, np.ndarray):
            raise UnknownFormError("a matrix is not quantized")
        values_KN, is_int4 = weight.values_KN, isinstance(weight, Int4Weight)
        scales, has_halves = _scales(weight)
        num_groups, input_scale = _input_form(weight)
        matrix = _Matrix(
            values_KN.ctypes.data,
            scales.ctypes.data,
            *values_KN.strides,
            *values_KN.shape,
            len(scales),
            num_groups,
            4 if is_int4 else 8,
            has_halves,
            input_scale,
        )
        self._check(self._library.nvila_decoder_set_matrix(self._handle, layer, slot, ctypes.byref(matrix)))
        return num_groups, input_scale, len(scales), matrix.bits, has_halves

    def _set_vector(self, layer: int, slot: int, weight: Weight) -> None:
        vector = np.ascontiguousarray(weight, np.float32)
        values = ctypes.c_void_p(vector.ctypes.data)
        self._check(self._library.nvila_decoder_set_vector(self._handle, layer, slot, values, len(vector)))

    def _check(self, failed: int) -> None:
        if failed:
            raise RuntimeError(self._library.nvila_last_error().decode())


def _scales(weight: Int4Weight | Int8Weight) -> tuple[np.ndarray, bool]:
    """Return scales, (G, N), and whether they are float16, as those of a build can be: half of what a step reads."""
    if isinstance(weight, Int8Weight):
        return np.ascontiguousarray(weight.scale_N[None], np.float32), False
    halves = np.ascontiguousarray(weight.scale_GN, np.float16)
    if np.array_equal(halves, weight.scale_GN):
        return halves, True
    return np.ascontiguousarray(weight.scale_GN, np.float32), False


def _input_form(weight: Int4Weight | Int8Weight) -> tuple[int, float]:
    """Return in how many groups a map's inputs are rounded, and by which scale, 0 where each group has its own.

    Raises:
        UnknownFormError: the inputs do not fill the blocks that kernels read.
    """
    num_inputs, num_outputs = weight.values_KN.shape
    step = 8 if isinstance(weight, Int4Weight) else 4
    size = weight.group_size if isinstance(weight, Int4Weight) else num_inputs
    if size % step:
        raise UnknownFormError(f"groups must be multiples of {step} inputs, got {size} of {num_inputs} x {num_outputs}")
    if isinstance(weight, Int8Weight) and weight.input_scale is not None:
        return 1, weight.input_scale
    size = max(part for part in range(step, min(size, MOST_GROUP) + 1, step) if size % part == 0)
    return num_inputs // size, 0.0


@functools.cache
def libraries() -> tuple[ctypes.CDLL, ...]:
    """Return what was compiled and this processor can run, the fastest first."""
    flags = processor_flags()
    paths = (next(_paths(name), None) for name, needed in FLAGS_BY_LIBRARY.items() if needed <= flags)
    opened = (_open(path) for path in paths if path is not None)
    return tuple(library for library in opened if library is not None)


def _open(path: Path) -> ctypes.CDLL | None:
    library = ctypes.CDLL(str(path))
    layout = getattr(library, "nvila_layout", None)
    if layout is None or layout() != LAYOUT:
        _log.warning("%s is not used: it is of another version than this module; install nvila_ros again", path)
        return None
    library.nvila_isa.restype = library.nvila_last_error.restype = ctypes.c_char_p
    library.nvila_decoder_delete.argtypes = [ctypes.c_void_p]
    library.nvila_decoder_delete.restype = None
    return library


def _paths(name: str) -> Iterator[Path]:
    """Yield where a library was installed: beside these sources, or, of an editable install, in the environment."""
    paths = (Path(folder, "native", f"decoder_{name}.so") for folder in nvila_ros.__path__)
    return (path for path in paths if path.is_file())


def processor_flags() -> set[str]:
    """Return what the system says of its processors."""
    if platform.system() != "Linux":
        return set()
    lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}
