"""The calls of the CUDA runtime that an engine needs, over cuda-python 12 or 13.

Pointers are integers, as TensorRT takes them. All work is ordered on one stream, so copies finish before their use.
"""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from nvila_ros.errors import BackendError

ALIGNMENT = 256  # bytes; TensorRT requires every address to be a multiple
MODULES = ("cuda.bindings.runtime", "cuda.cudart")  # the newer name first: the older warns where both are


class Buffer:
    """Memory on the device, freed with the object; `pointer` is a multiple of `ALIGNMENT`."""

    def __init__(self, cuda: Cuda, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.pointer = cuda.allocate(max(num_bytes, ALIGNMENT))
        weakref.finalize(self, cuda.free, self.pointer)


class Graph:
    """Captured work, which is launched repeatedly on the same addresses."""

    def __init__(self, cuda: Cuda, handle: Any) -> None:
        self.handle = handle
        weakref.finalize(self, cuda.destroy, handle)


class Cuda:
    """One stream of one device."""

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self.stream = int(self._call("cudaStreamCreate"))  # as TensorRT takes it

    def describe(self) -> tuple[str, int]:
        """Return the device's architecture, such as `sm_87`, and how many multiprocessors it has."""
        device, names = self._call("cudaGetDevice"), self._cudart.cudaDeviceAttr
        wanted = (
            names.cudaDevAttrComputeCapabilityMajor,
            names.cudaDevAttrComputeCapabilityMinor,
            names.cudaDevAttrMultiProcessorCount,
        )
        major, minor, num_sms = (int(self._call("cudaDeviceGetAttribute", name, device)) for name in wanted)
        return f"sm_{major}{minor}", num_sms

    def allocate(self, num_bytes: int) -> int:
        """Allocate device memory; `cudaMalloc` aligns to 256 bytes."""
        return int(self._call("cudaMalloc", num_bytes))

    def free(self, pointer: int) -> None:
        """Free device memory."""
        self._call("cudaFree", pointer)

    def clear(self, pointer: int, num_bytes: int) -> None:
        """Set memory to zero."""
        self._call("cudaMemsetAsync", pointer, 0, num_bytes, self.stream)

    def upload(self, array: np.ndarray, pointer: int) -> None:
        """Copy a contiguous array to the device; the array may be changed as soon as this returns.

        Source: the CUDA runtime's "API synchronization behavior": pageable memory is staged before the call returns.
        """
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpyAsync", pointer, array.ctypes.data, array.nbytes, kind, self.stream)

    def download(self, pointer: int, array: np.ndarray) -> None:
        """Wait for all earlier work, then fill a contiguous array from the device."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call("cudaMemcpyAsync", array.ctypes.data, pointer, array.nbytes, kind, self.stream)
        self.wait()

    def copy_rows(self, target: int, source: int, row_bytes: int, num_rows: int, pitch: int) -> None:
        """Copy the first `row_bytes` of rows that begin `pitch` bytes apart, on the device."""
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy2DAsync", target, pitch, source, pitch, row_bytes, num_rows, kind, self.stream)

    def wait(self) -> None:
        """Wait until all work is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Capture what `work` would put on the stream, without running it.

        Raises:
            BackendError: the work cannot be captured; the stream is as before.
        """
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            work()
        except BackendError:
            self._cudart.cudaStreamEndCapture(self.stream)  # its status repeats the error that is being raised
            raise
        captured = self._call("cudaStreamEndCapture", self.stream)
        try:
            return Graph(self, self._call("cudaGraphInstantiate", captured, 0))
        finally:
            self._call("cudaGraphDestroy", captured)

    def launch(self, graph: Graph) -> None:
        """Start captured work."""
        self._call("cudaGraphLaunch", graph.handle, self.stream)

    def destroy(self, handle: Any) -> None:
        """Free a `Graph`."""
        self._call("cudaGraphExecDestroy", handle)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Return the result of a call without its status.

        Raises:
            BackendError: the call failed.
        """
        status, *given = getattr(self._cudart, name)(*arguments)
        if status != self._cudart.cudaError_t.cudaSuccess:
            raise BackendError(f"{name} failed: {status.name}; see the driver with nvidia-smi or tegrastats")
        return given[0] if given else None


def open_cuda() -> Cuda:
    """Return a stream of the current device.

    Raises:
        BackendError: cuda-python is not installed, or there is no device.
    """
    missing = []
    for name in MODULES:
        try:
            return Cuda(importlib.import_module(name))
        except ImportError as error:
            missing.append(str(error))
    raise BackendError(f"cuda-python cannot be loaded ({'; '.join(missing)}); pip install cuda-python")
