"""Weights for OpenVINO: constants in a mapped file, so that none are in memory twice.

The CPU plugin repacks every weight for its kernels when a model first runs, and keeps the original constants for as
long as the model lives. Constants in ordinary memory would double the model. Here each weight is written to a mapped
anonymous file; once the plugin has packed it, the mapped pages are released. If the plugin reads them again, the system
loads them from the file.

Shapes: K inputs, N outputs, G groups of inputs.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

import numpy as np

from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight, pack_nibbles
from nvila_ros.runtime.openvino.api import ops, ov

Value = Any
"""An output of a node (`ov.Output`), which is what every operation takes."""

SEGMENT_BYTES = 1 << 26  # of one file; each keeps a file descriptor
SMALL_BYTES = 1 << 14  # below this an array stays in memory
BLOCK_ROWS = 8192  # converted at a time, since a table's copy in float32 would be the largest thing in memory
ALIGN_BYTES = 64  # every weight starts on a cache line


class WeightStore:
    """Keeps weights in a file that is deleted with the process, and makes constants of them.

    OpenVINO only references the memory, so a store must outlive the models that were built with it.
    """

    def __init__(self) -> None:
        self._segments: list[mmap.mmap] = []
        self._used_bytes = 0  # of the last segment
        self._held: dict[int, np.ndarray] = {}

    def hold(self, array: np.ndarray, dtype: type | None = None) -> np.ndarray:
        """Return the array, cast to `dtype` and stored in a file; a small one is only made contiguous."""
        if id(array) not in self._held:
            is_small = array.nbytes < SMALL_BYTES
            array = (
                np.ascontiguousarray(array, dtype) if is_small else self._write(array, np.dtype(dtype or array.dtype))
            )
            self._held[id(array)] = array
        return array

    def _write(self, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
        num_bytes = array.size * dtype.itemsize
        if not self._segments or self._used_bytes + num_bytes > len(self._segments[-1]):
            self._segments.append(_map_file(max(SEGMENT_BYTES, num_bytes)))
            self._used_bytes = 0
        written = np.frombuffer(self._segments[-1], dtype, array.size, self._used_bytes).reshape(array.shape)
        for start in range(0, len(array), BLOCK_ROWS):
            written[start : start + BLOCK_ROWS] = array[start : start + BLOCK_ROWS]
            self._segments[-1].madvise(mmap.MADV_DONTNEED)  # the data stays in the file
        self._used_bytes += -(-num_bytes // ALIGN_BYTES) * ALIGN_BYTES
        return written

    def give_back(self) -> None:
        """Release the mapped pages; what is read again comes from the file."""
        for segment in self._segments:
            segment.madvise(mmap.MADV_DONTNEED)

    def constant(self, array: np.ndarray, shape: list[int] | None = None, kind: ov.Type | None = None) -> Value:
        """Return a constant over `array`; `shape` and `kind` are those of packed bytes."""
        held = self.hold(array)
        tensor = ov.Tensor(held, shape, kind) if shape and kind else ov.Tensor(held, shared_memory=True)
        return ov.op.Constant(tensor).output(0)

    def matrix(self, weight: Weight) -> Value:
        """Return a weight as an (N, K) float32 value, in the form that the plugin multiplies without unpacking."""
        if isinstance(weight, Int4Weight):
            return self._int4(weight)
        if isinstance(weight, Int8Weight):
            values = ops.convert(self.constant(weight.values_KN.T), np.float32)
            return ops.multiply(values, self.constant(weight.scale_N[:, None])).output(0)
        return self.constant(np.asarray(weight, np.float32))

    def _int4(self, weight: Int4Weight) -> Value:
        (num_in, num_out), num_groups = weight.values_KN.shape, len(weight.scale_GN)
        packed = np.empty((num_out, num_in // 2), np.uint8)
        for start in range(0, num_out, BLOCK_ROWS):
            rows = slice(start, start + BLOCK_ROWS)
            packed[rows] = pack_nibbles(weight.values_KN[:, rows].T)
        values = self.constant(packed, [num_out, num_groups, weight.group_size], ov.Type.i4)
        scale = self.constant(weight.scale_GN.T[:, :, None].astype(np.float32))
        grouped = ops.multiply(ops.convert(values, np.float32), scale)
        return ops.reshape(grouped, np.array([num_out, num_in]), False).output(0)


def _map_file(num_bytes: int) -> mmap.mmap:
    """Return a map of a new file that has no name.

    Raises:
        OSError: the disk of temporary files has no room; TMPDIR names another.
    """
    with tempfile.TemporaryFile(prefix="nvila_ros-") as file:
        # Allocated now: a disk that fills up while the map is written would kill the process.
        os.posix_fallocate(file.fileno(), 0, num_bytes)
        return mmap.mmap(file.fileno(), num_bytes)
