"""One profile's execution context with the memory of its inputs and outputs, allocated when it is created.

A context has one profile: a decoder has one for prompts and one for single tokens over the same weights, so that no
call switches profiles and captured steps stay valid.

Shapes are those of `builder.part_profiles`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from nvila_ros.errors import BackendError
from nvila_ros.runtime.tensorrt import api
from nvila_ros.runtime.tensorrt.builder import Profile
from nvila_ros.runtime.tensorrt.cuda import ALIGNMENT, Buffer, Cuda, Graph

Bindings = Mapping[str, tuple[int, tuple[int, ...] | None]]
"""Address of each input and output, and the shape of inputs."""


class CapturedStep:
    """A captured step and its bindings: it must not be launched on other addresses or shapes."""

    def __init__(self, graph: Graph, bindings: Bindings) -> None:
        self.graph, self.bindings = graph, bindings


class ProfileContext:
    """One profile of one plan.

    Args:
        trt: the vendor's module.
        engine: a loaded plan.
        cuda: the stream that everything runs on.
        profile: number of the profile.
        shapes: that profile; inputs of a cache are left to the caller to bind.
    """

    def __init__(self, trt: Any, engine: Any, cuda: Cuda, profile: int, shapes: Profile) -> None:
        self._trt, self._engine, self._cuda = trt, engine, cuda  # a context does not keep its engine alive
        # Single tokens always ask for one row of logits, whatever their profile allows.
        keeps_shape = all(least == largest for name, (least, _, largest) in shapes.items() if name != "rows")
        self._context = api.open_context(trt, engine, profile, cuda.stream, keeps_shape)
        self._buffers: dict[str, Buffer] = {}
        self.bindings: dict[str, tuple[int, tuple[int, ...] | None]] = {}
        for name, (_, _, largest) in shapes.items():
            if not name.startswith("past_"):
                self.allocate(name, (8 if name == "rows" else 2) * prod(largest))

    def allocate(self, name: str, num_bytes: int) -> Buffer:
        """Return the memory of an input or output; it is kept while it is large enough."""
        if name not in self._buffers or self._buffers[name].num_bytes < num_bytes:
            self._buffers[name] = Buffer(self._cuda, num_bytes)
        return self._buffers[name]

    def give(self, name: str, array: np.ndarray) -> None:
        """Copy an input to the device."""
        array = np.ascontiguousarray(array)
        buffer = self.allocate(name, array.nbytes)
        self._cuda.upload(array, buffer.pointer)
        self.bind(name, buffer.pointer, array.shape)

    def bind(self, name: str, pointer: int, shape: tuple[int, ...] | None = None) -> None:
        """Bind an input or output to an address; inputs also have a shape."""
        if pointer % ALIGNMENT:
            raise BackendError(f"{name} must lie at a multiple of {ALIGNMENT} bytes, got {pointer}")
        if self.bindings.get(name) == (pointer, shape):
            return
        self.bindings.pop(name, None)
        if shape is not None:
            self._check(self._context.set_input_shape(name, shape), name)
        self._check(self._context.set_tensor_address(name, pointer), name)
        self.bindings[name] = (pointer, shape)

    def reserve(self, name: str, shape: tuple[int, ...], dtype: Any) -> None:
        """Let an output lie in memory of this part's own."""
        self.bind(name, self.allocate(name, prod(shape) * np.dtype(dtype).itemsize).pointer)

    def fetch(self, name: str, array: np.ndarray) -> np.ndarray:
        """Fill a contiguous array from the start of an output, once all work is done, and return it."""
        self._cuda.download(self._buffers[name].pointer, array)
        return array

    def run(self) -> None:
        """Start on what is bound."""
        self._check(self._context.execute_async_v3(self._cuda.stream), "run")

    def capture(self) -> CapturedStep:
        """Capture what `run` does with the current bindings; it must have run on them before.

        Raises:
            BackendError: a kernel of the plan cannot be captured.
        """
        return CapturedStep(self._cuda.capture(self.run), dict(self.bindings))

    def launch(self, captured: CapturedStep) -> None:
        """Launch a captured step, whose bindings must be the current ones."""
        if captured.bindings != self.bindings:
            raise BackendError("a graph must run on the addresses and shapes that it was captured on; these changed")
        self._cuda.launch(captured.graph)

    def _check(self, is_done: bool, what: str) -> None:
        if not is_done:
            raise BackendError(f"TensorRT refused {what}: {api.last_error(self._trt)}")


def load_plan(trt: Any, runtime: Any, name: str, plan: Any) -> Any:
    """Return the engine of a plan; `plan` is any buffer of bytes.

    Raises:
        BackendError: the runtime refuses it.
    """
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(
            f"TensorRT {trt.__version__} cannot load the plan of {name}: {api.last_error(trt)}; build it on this device"
        )
    return engine
