"""A checkpoint whose linear maps are rounded to eight or four bits while they are read: no calibration, no build.

Each weight is rounded to the nearest value of its row or group, tensor by tensor, so that memory holds the rounded
model and one tensor as it lies on disk. The tower always gets eight bits, since four lose too much there; embeddings,
norms, biases and the projector stay as they are. A build of the same bits answers better where it is calibrated: AWQ
and clipping choose what is lost.

Shapes: K inputs, N outputs, G groups of inputs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from nvila_ros.errors import BackendError
from nvila_ros.models.build import Build
from nvila_ros.models.build_shapes import TABLES
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.host import available_memory
from nvila_ros.models.quantized import INT4_RANGE, INT8_RANGE, Int4Weight, Int8Weight, Weight
from nvila_ros.models.shapes import expected_shapes
from nvila_ros.models.spec import ModelSpec

AUTO, FLOAT = "auto", "fp32"
BITS = {"w8": 8, "w4": 4}
PRECISIONS = (AUTO, FLOAT, *BITS)
ROUNDING_BACKEND = "cpu"
RUNTIME_BYTES = 700 << 20  # Python, OpenVINO, caches of a clip
GROUP_SIZE = 128
GROUP_STEP = 8  # what the kernels of four bits read at once
MIN_SCALE = 2.0**-20  # exact in half precision: a row of zeros needs a positive scale too
BLOCK_ROWS = 128  # rounded at a time, within a core's own cache
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RoundedCheckpoint:
    """A `ModelSource` over a checkpoint.

    Attributes:
        bits: 8, or 4 for the language model's layers.
    """

    checkpoint: Checkpoint
    bits: int

    @property
    def spec(self) -> ModelSpec:
        """The checkpoint's shapes and choices."""
        return self.checkpoint.spec

    def weights(self) -> RoundedWeights:
        """Return the tensors by `part.key`; each is read and rounded at every access.

        Raises:
            CheckpointError: the checkpoint is not whole.
        """
        return RoundedWeights(self.checkpoint.weights(dtype=None), self.bits)


class RoundedWeights(Mapping[str, Weight]):
    """A checkpoint's weights, linear maps of the tower and the language model rounded when they are read."""

    def __init__(self, weights: Mapping[str, np.ndarray], bits: int) -> None:
        self._weights, self._bits = weights, bits

    def __getitem__(self, key: str) -> Weight:
        weight = self._weights[key]
        if not is_rounded(key, weight.shape):
            return weight.astype(np.float32, copy=False)
        if self._bits == 4 and key.startswith("llm."):
            return round_int4(weight)
        return round_int8(weight)

    def __contains__(self, key: object) -> bool:
        return key in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


AnyModel = Checkpoint | Build | RoundedCheckpoint
"""Whatever an engine is loaded from."""


def choose_precision(source: AnyModel, backend: str, precision: str = AUTO) -> AnyModel:
    """Return what a backend is to load: the model as it is, or rounded.

    Args:
        source: the opened model; one that is rounded already stays as it is.
        backend: which one loads it.
        precision: one of `PRECISIONS`; `AUTO` leaves a model as it is, except a checkpoint on `ROUNDING_BACKEND`: eight
            bits where memory allows, else four.

    Raises:
        BackendError: the precision is unknown, or this model or backend has no choice of it.
    """
    if precision not in PRECISIONS:
        raise BackendError(f"unknown precision {precision!r}; known are {list(PRECISIONS)}")
    if isinstance(source, RoundedCheckpoint):
        return source
    if isinstance(source, Build):
        if precision != AUTO:
            raise BackendError(
                f"{source.path} was built as {source.precision}, which precision {precision} cannot change; leave it "
                f"{AUTO}, or give the checkpoint"
            )
        return source
    if backend != ROUNDING_BACKEND:
        if precision in BITS:
            raise BackendError(
                f"precision {precision} is for backend {ROUNDING_BACKEND} alone, got {backend}; choose that backend or "
                f"precision {FLOAT}"
            )
        return source
    if precision == AUTO:
        precision = fitting_precision(source.spec, available_memory())
        _log.info("%s is rounded to %s while it is read; a build is more accurate", source.path.name, precision)
    return source if precision == FLOAT else RoundedCheckpoint(source, BITS[precision])


def fitting_precision(spec: ModelSpec, memory_bytes: int) -> str:
    """Return `w8` where a model of eight bits fits into this much memory, else `w4`."""
    return "w8" if rounded_bytes(spec, 8) + RUNTIME_BYTES <= memory_bytes else "w4"


def rounded_bytes(spec: ModelSpec, bits: int, prefix: str = "") -> int:
    """Return the bytes of a rounded model's weights below a prefix; all that is not rounded has two bytes a value."""
    shapes = {key: shape for key, shape in expected_shapes(spec).items() if key.startswith(prefix)}
    return sum(math.prod(shape) * _bits(key, shape, bits) // 8 for key, shape in shapes.items())


def _bits(key: str, shape: tuple[int, ...], bits: int) -> int:
    """Return the bits of a value; scales, at most a thirty-second of it, are not counted."""
    if not is_rounded(key, shape):
        return 16
    return bits if key.startswith("llm.") else 8


def is_rounded(key: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is a linear map of a layer of the tower or the language model."""
    return len(shape) == 2 and ".layers." in key and not key.startswith("mm_projector.") and key not in TABLES


def round_int8(weight_NK: np.ndarray) -> Int8Weight:
    """Round a linear map to the nearest of 255 values for each output; ties go to even.

    Args:
        weight_NK: as a checkpoint stores it, of any float type, finite.

    Returns:
        The weight; each token's input gets a scale of its own when it runs.
    """
    values_NK, scale_N = np.empty(weight_NK.shape, np.int8), np.empty(len(weight_NK), np.float32)

    def round_block(rows: slice, block_NK: np.ndarray) -> None:
        scale_N[rows] = half_up(np.abs(block_NK).max(1) / INT8_RANGE[1])
        values_NK[rows] = np.rint(block_NK / scale_N[rows, None])

    _each_block(weight_NK, round_block)
    return Int8Weight(values_NK.T, scale_N, None)


def round_int4(weight_NK: np.ndarray) -> Int4Weight:
    """Round a linear map to the nearest of sixteen values for each output and group of inputs; ties go to even.

    Args:
        weight_NK: as `round_int8` takes it. Groups have `GROUP_SIZE` inputs, or as many below it as divide them.
    """
    num_outputs, num_inputs = weight_NK.shape
    size = group_size(num_inputs)
    values_NK = np.empty(weight_NK.shape, np.int8)
    scale_NG = np.empty((num_outputs, num_inputs // size), np.float32)

    def round_block(rows: slice, block_NK: np.ndarray) -> None:
        groups = block_NK.reshape(len(block_NK), -1, size)
        lowest, highest = INT4_RANGE
        scale_NG[rows] = half_up(np.maximum(groups.max(2) / highest, groups.min(2) / lowest))
        groups /= scale_NG[rows, :, None]
        np.rint(groups, out=groups)
        values_NK[rows] = np.clip(groups, lowest, highest, out=groups).reshape(len(block_NK), -1)

    _each_block(weight_NK, round_block)
    return Int4Weight(values_NK.T, scale_NG.T)


def group_size(num_inputs: int) -> int:
    """Return the largest size up to `GROUP_SIZE` that divides the inputs, in steps that kernels read where one does."""
    sizes = range(min(GROUP_SIZE, num_inputs), 0, -1)
    fits = [size for size in sizes if num_inputs % size == 0]
    return next((size for size in fits if size % GROUP_STEP == 0), fits[0])


def half_up(scale: np.ndarray) -> np.ndarray:
    """Return the smallest float16 value not below each scale, at least `MIN_SCALE`, in float32, as builds store it."""
    scale = np.maximum(scale, MIN_SCALE)
    half = scale.astype(np.float16)
    return np.where(half < scale, np.nextafter(half, np.float16(np.inf)), half).astype(np.float32)


def _each_block(weight_NK: np.ndarray, take: Callable[[slice, np.ndarray], None]) -> None:
    """Call `take` with rows and a writable float32 copy of them."""
    for start in range(0, len(weight_NK), BLOCK_ROWS):
        rows = slice(start, start + BLOCK_ROWS)
        take(rows, weight_NK[rows].astype(np.float32))
