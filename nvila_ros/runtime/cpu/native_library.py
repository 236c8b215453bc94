"""The compiled libraries of `native/`: which of them this processor runs, their C structures, and their errors.

The structures mirror `native/api.h`. Every array crosses with its size, which the library compares with the spec before
it reads or writes anything.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import nvila_ros
from nvila_ros.errors import ShapeError
from nvila_ros.models.host import processor_flags

_log = logging.getLogger(__name__)

_AVX512_VNNI = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"}
FLAGS_BY_LIBRARY = {
    "amx": {*_AVX512_VNNI, "amx_tile", "amx_int8"},
    "avx512vnni": _AVX512_VNNI,
    "avxvnni": {"avx_vnni", "avx2", "f16c", "fma"},
    "avx2": {"avx2", "f16c", "fma"},
    "dotprod": {"asimddp"},
}
"""The processor flags that each library needs, the fastest library first."""
OK, INVALID, OUT_OF_MEMORY = 0, 1, 2  # of `Status`; any other number is a failure without a rule


class Span(ctypes.Structure):
    """An array and its number of elements."""

    _fields_ = [("data", ctypes.c_void_p), ("size", ctypes.c_int64)]


class Spec(ctypes.Structure):
    """Shapes of the decoder."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("width", "num_layers", "num_heads", "num_kv_heads", "head_size")),
        *((name, ctypes.c_int32) for name in ("mlp_width", "vocab_size")),
        ("norm_eps", ctypes.c_float),
    ]


class TowerSpec(ctypes.Structure):
    """Shapes of a tower."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("width", "num_layers", "num_heads", "mlp_width", "num_patches")),
        ("norm_eps", ctypes.c_float),
    ]


class MatrixView(ctypes.Structure):
    """A matrix as its owner holds it; strides count elements."""

    _fields_ = [
        *((name, Span) for name in ("values", "scales")),
        *((name, ctypes.c_int64) for name in ("stride_k", "stride_n")),
        *((name, ctypes.c_int32) for name in ("num_inputs", "num_outputs", "num_groups", "num_input_groups")),
        *((name, ctypes.c_int32) for name in ("bits", "has_half_scales")),
        ("input_scale", ctypes.c_float),
    ]


class DecoderCall(ctypes.Structure):
    """One call of a decoder."""

    _fields_ = [
        *((name, Span) for name in ("embeds", "cos", "sin", "mask", "rows", "cache")),
        *((name, ctypes.c_int64) for name in ("stride", "capacity", "start", "num_new")),
        ("logits", Span),
    ]


LAYOUT = ctypes.sizeof(Spec) << 20 | ctypes.sizeof(MatrixView) << 10 | ctypes.sizeof(DecoderCall)


def span(array: np.ndarray) -> Span:
    """Return a contiguous array as it crosses; the caller keeps it alive."""
    return Span(array.ctypes.data, array.size)


def check(library: ctypes.CDLL, status: int) -> None:
    """Raise what a status stands for.

    Raises:
        ShapeError: an argument breaks a rule, which the message names with the values.
        MemoryError: the library could not allocate.
        RuntimeError: anything else.
    """
    if status == OK:
        return
    kind = {INVALID: ShapeError, OUT_OF_MEMORY: MemoryError}.get(status, RuntimeError)
    raise kind(library.nvila_last_error().decode(errors="replace"))


@functools.cache
def libraries() -> tuple[ctypes.CDLL, ...]:
    """Return the compiled libraries that this processor can run, the fastest first."""
    flags = processor_flags()
    paths = (next(_paths(name), None) for name, needed in FLAGS_BY_LIBRARY.items() if needed <= flags)
    opened = (_open(path) for path in paths if path is not None)
    return tuple(library for library in opened if library is not None)


def _open(path: Path) -> ctypes.CDLL | None:
    library = ctypes.CDLL(str(path))
    layout = getattr(library, "nvila_layout", None)
    if layout is not None:
        layout.restype = ctypes.c_int64
    if layout is None or layout() != LAYOUT:
        _log.warning("%s is not used: it is of another version than this module; install nvila_ros again", path)
        return None
    can_run = getattr(library, "nvila_can_run", None)
    if can_run is not None and not can_run():
        _log.warning("%s is not used: the system does not let this process use its instructions", path)
        return None
    library.nvila_isa.restype = library.nvila_last_error.restype = ctypes.c_char_p
    handle, number, count = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
    library.nvila_decoder_new.argtypes = [ctypes.POINTER(Spec), number, ctypes.POINTER(handle)]
    library.nvila_decoder_delete.argtypes = [handle]
    library.nvila_decoder_set_matrix.argtypes = [handle, number, number, ctypes.POINTER(MatrixView)]
    library.nvila_decoder_set_vector.argtypes = [handle, number, number, handle, count]
    library.nvila_decoder_run.argtypes = [handle, ctypes.POINTER(DecoderCall)]
    if hasattr(library, "nvila_tower_new"):
        library.nvila_tower_new.argtypes = [ctypes.POINTER(TowerSpec), number, ctypes.POINTER(handle)]
        library.nvila_tower_delete.argtypes = [handle]
        library.nvila_tower_set_matrix.argtypes = [handle, number, number, ctypes.POINTER(MatrixView)]
        library.nvila_tower_set_vector.argtypes = [handle, number, number, handle, count]
        library.nvila_tower_run.argtypes = [handle, handle, count]
    return library


def _paths(name: str) -> Iterator[Path]:
    """Yield where a library was installed: beside these sources, or, of an editable install, in the environment."""
    paths = (Path(folder, "native", f"decoder_{name}.so") for folder in nvila_ros.__path__)
    return (path for path in paths if path.is_file())
