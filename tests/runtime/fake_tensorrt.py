"""A device made of this machine's memory: TensorRT's runtime over ONNX Runtime, the CUDA runtime over numpy.

A plan is the path of its graph. Both refuse what the real ones refuse or get wrong without a word.
"""

import ctypes
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime

from nvila_ros.runtime.tensorrt_builder import Profile

DTYPES = {"float16": np.float16, "float": np.float32, "int64": np.int64, "bool": np.bool_}


class FakeCudart:
    """The calls that `tensorrt_cuda.Cuda` makes, each giving its status first."""

    cudaError_t = SimpleNamespace(cudaSuccess=0)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)

    def __init__(self) -> None:
        self.held: dict[int, np.ndarray] = {}
        self.num_taken = 0

    def cudaStreamCreate(self) -> tuple[int, int]:  # noqa: N802
        return 0, 7

    def cudaMalloc(self, num_bytes: int) -> tuple[int, int]:  # noqa: N802
        memory = np.full(num_bytes + 256, 0x7B, np.uint8)  # rubbish that is a number in float16
        pointer = -(-memory.ctypes.data // 256) * 256
        self.held[pointer] = memory
        self.num_taken += 1
        return 0, pointer

    def cudaFree(self, pointer: int) -> tuple[int]:  # noqa: N802
        del self.held[pointer]
        return (0,)

    def cudaMemcpyAsync(self, target: int, source: int, num_bytes: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        device = target if kind == 1 else source
        assert any(p <= device and device + num_bytes <= p + len(m) - 256 for p, m in self.held.items()), (
            "out of bounds"
        )
        ctypes.memmove(target, source, num_bytes)
        return (0,)

    def cudaMemsetAsync(self, pointer: int, value: int, num_bytes: int, stream: int) -> tuple[int]:  # noqa: N802
        ctypes.memset(pointer, value, num_bytes)
        return (0,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        return (0,)


class FakeContext:
    """An execution context of one graph."""

    def __init__(self, path: str, profiles: list[Profile]) -> None:
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.profiles = profiles
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.pointers: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile, self.shapes, self.pointers = profile, {}, {}
        return profile < len(self.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, largest = self.profiles[self.profile].get(name, (shape, shape, shape))
        self.shapes[name] = shape
        return all(a <= size <= b for a, size, b in zip(least, shape, largest, strict=True))

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.pointers[name] = pointer
        return pointer % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        inputs = {i.name: self._view(i.name, self.shapes[i.name], i.type).copy() for i in self.session.get_inputs()}
        for output, array in zip(self.session.get_outputs(), self.session.run(None, inputs), strict=True):
            if output.name.startswith("present_"):
                assert self.pointers[output.name] == self.pointers[output.name.replace("present", "past")]
            self._view(output.name, array.shape, output.type)[...] = array
        return True

    def _view(self, name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
        dtype = np.dtype(DTYPES[kind.removeprefix("tensor(").removesuffix(")")])
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_uint8 * num_bytes).from_address(self.pointers[name])
        return np.frombuffer(memory, dtype).reshape(shape)


def fake_tensorrt(profiles_by_part: dict[str, list[Profile]]) -> SimpleNamespace:
    """Return a stand-in for the vendor's module, whose plans of each part have these profiles."""

    class Module(SimpleNamespace):
        __hash__ = object.__hash__  # as modules, by identity

    class Logger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    class Runtime:
        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> SimpleNamespace | None:
            path = Path(plan.decode())
            if not path.is_file():
                return None
            profiles = profiles_by_part[path.name.split(".")[0]]
            return SimpleNamespace(create_execution_context=lambda: FakeContext(str(path), profiles))

    return Module(ILogger=Logger, Runtime=Runtime, __version__="0.0")
