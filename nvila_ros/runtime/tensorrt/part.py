"""One plan's context with the memory of its inputs and outputs, all of it taken when the part is opened.

A context keeps to one profile: a decoder has one for prompts and one for single tokens over the same weights, so that
no call waits for a change of profiles, and what was captured of one stays as it was captured.

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
"""Address of each input and output, and of inputs the shape."""


class Captured:
    """A step that was captured, and what was bound then: on other addresses or shapes it must not be launched."""

    def __init__(self, graph: Graph, bindings: Bindings) -> None:
        self.graph, self.bindings = graph, bindings


class Part:
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
        # Of single tokens the logits of one row are asked for, whatever their profile allows.
        keeps_shape = all(least == largest for name, (least, _, largest) in shapes.items() if name != "rows")
        self._context = api.open_context(trt, engine, profile, cuda.stream, keeps_shape)
        self._buffers: dict[str, Buffer] = {}
        self.bindings: dict[str, tuple[int, tuple[int, ...] | None]] = {}
        for name, (_, _, largest) in shapes.items():
            if not name.startswith("past_"):
                self.allocate(name, (8 if name == "rows" else 2) * prod(largest))

    def allocate(self, name: str, num_bytes: int) -> Buffer:
        """Return the memory of an input or output, the same as long as it is large enough."""
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
        """Let an input or output lie at an address; inputs tell their shape."""
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

    def capture(self) -> Captured:
        """Capture what `run` does with what is bound; it must have run on the same before.

        Raises:
            BackendError: a kernel of the plan cannot be captured.
        """
        return Captured(self._cuda.capture(self.run), dict(self.bindings))

    def launch(self, captured: Captured) -> None:
        """Do what was captured on what is bound, which must be the same."""
        if captured.bindings != self.bindings:
            raise BackendError("a graph must run on the addresses and shapes that it was captured on; these changed")
        self._cuda.launch(captured.graph)

    def _check(self, is_done: bool, what: str) -> None:
        if not is_done:
            raise BackendError(f"TensorRT refused {what}: {api.last_error(self._trt)}")


def load_plan(trt: Any, runtime: Any, name: str, plan: Any) -> Any:
    """Return a plan of which the runtime makes an engine; `plan` is anything that holds bytes.

    Raises:
        BackendError: the runtime refuses it.
    """
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(
            f"TensorRT {trt.__version__} cannot load the plan of {name}: {api.last_error(trt)}; build it on this device"
        )
    return engine
