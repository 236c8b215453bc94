"""A device made of this machine's memory: TensorRT's runtime over ONNX Runtime, the CUDA runtime over numpy.

A plan is the path of its graph. Both refuse what the real ones refuse or get wrong without a word. While a graph is
captured, nothing runs and nothing may be taken, copied, waited for or bound; what is launched later runs on the
addresses of the capture, which must still be held and still be what the context is bound to.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime

from nvila_ros.runtime.tensorrt.builder import Profile
from tests.export.test_forms import reads_a_cache_in_place

DTYPES = {"float16": np.float16, "float": np.float32, "int64": np.int64, "bool": np.bool_}
OK = SimpleNamespace(name="cudaSuccess")
REFUSED = SimpleNamespace(name="cudaErrorStreamCaptureUnsupported")


@dataclass
class FakeGraph:
    """What was put on the stream while it was captured; once instantiated it can be launched."""

    work: list[Callable[[], None]] = field(default_factory=list)
    is_ready: bool = False


class FakeCudart:
    """The calls that `cuda.Cuda` makes, each giving its status first."""

    cudaError_t = SimpleNamespace(cudaSuccess=OK)
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaDeviceAttr = SimpleNamespace(
        cudaDevAttrComputeCapabilityMajor=8, cudaDevAttrComputeCapabilityMinor=7, cudaDevAttrMultiProcessorCount=16
    )

    def __init__(self, can_capture: bool = True) -> None:
        self.held: dict[int, np.ndarray] = {}
        self.num_taken = self.num_launched = 0
        self.can_capture = can_capture
        self.captured: FakeGraph | None = None
        self.graphs: list[FakeGraph] = []

    def cudaStreamCreate(self) -> tuple[object, int]:  # noqa: N802
        return OK, 7

    def cudaGetDevice(self) -> tuple[object, int]:  # noqa: N802
        return OK, 0

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[object, int]:  # noqa: N802
        return OK, attribute

    def cudaMalloc(self, num_bytes: int) -> tuple[object, int]:  # noqa: N802
        self.refuse_in_capture()
        memory = np.full(num_bytes + 256, 0x7B, np.uint8)  # rubbish that is a number in float16
        pointer = -(-memory.ctypes.data // 256) * 256
        self.held[pointer] = memory
        self.num_taken += 1
        return OK, pointer

    def cudaFree(self, pointer: int) -> tuple[object]:  # noqa: N802
        del self.held[pointer]
        return (OK,)

    def cudaMemcpyAsync(self, target: int, source: int, num_bytes: int, kind: int, stream: int) -> tuple[object]:  # noqa: N802
        self.refuse_in_capture()
        self.check_held(target if kind == 1 else source, num_bytes)
        ctypes.memmove(target, source, num_bytes)
        return (OK,)

    def cudaMemcpy2DAsync(  # noqa: N802
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int, *_: int
    ) -> tuple[object]:
        self.refuse_in_capture()
        assert width <= min(target_pitch, source_pitch), "rows overlap"
        for i in range(height):
            self.check_held(target + i * target_pitch, width)
            self.check_held(source + i * source_pitch, width)
            ctypes.memmove(target + i * target_pitch, source + i * source_pitch, width)
        return (OK,)

    def cudaMemsetAsync(self, pointer: int, value: int, num_bytes: int, stream: int) -> tuple[object]:  # noqa: N802
        self.refuse_in_capture()
        self.check_held(pointer, num_bytes)
        ctypes.memset(pointer, value, num_bytes)
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[object]:  # noqa: N802
        self.refuse_in_capture()
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[object]:  # noqa: N802
        self.refuse_in_capture()
        self.captured = FakeGraph()
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[object, FakeGraph | None]:  # noqa: N802
        assert self.captured is not None, "nothing is being captured"
        graph, self.captured = self.captured, None
        return (OK, graph) if self.can_capture else (REFUSED, None)

    def cudaGraphInstantiate(self, graph: FakeGraph, flags: int) -> tuple[object, FakeGraph]:  # noqa: N802
        self.graphs.append(FakeGraph(graph.work, is_ready=True))
        return OK, self.graphs[-1]

    def cudaGraphDestroy(self, graph: FakeGraph) -> tuple[object]:  # noqa: N802
        assert not graph.is_ready, "that is an instance, not a graph"
        return (OK,)

    def cudaGraphExecDestroy(self, graph: FakeGraph) -> tuple[object]:  # noqa: N802
        assert graph.is_ready, "that is a graph, not an instance"
        graph.is_ready = False
        self.graphs.remove(graph)
        return (OK,)

    def cudaGraphLaunch(self, graph: FakeGraph, stream: int) -> tuple[object]:  # noqa: N802
        self.refuse_in_capture()
        assert graph.is_ready, "launched before it was instantiated, or after it was destroyed"
        self.num_launched += 1
        for work in graph.work:
            work()
        return (OK,)

    def check_held(self, pointer: int, num_bytes: int) -> None:
        """Fail where memory of the device is used that was not taken, or was given back."""
        ends = (pointer + num_bytes <= p + len(m) - 256 for p, m in self.held.items() if p <= pointer)
        assert any(ends), "out of bounds"

    def refuse_in_capture(self) -> None:
        """Fail where a stream that is captured would be changed by more than work."""
        assert self.captured is None, "not while a graph is captured"


class FakeContext:
    """An execution context of one graph; one that is not settled may change its kernels while it is used."""

    def __init__(self, path: str, profiles: list[Profile], cudart: FakeCudart, is_settled: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of every cache that it copies
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.profiles, self.cudart, self.is_settled = profiles, cudart, is_settled
        self.profile = -1  # with memory for one profile alone, that one must be named first
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.pointers: dict[str, int] = {}
        self.warm: tuple[object, ...] = ()

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.cudart.refuse_in_capture()
        self.profile, self.shapes, self.pointers, self.warm = profile, {}, {}, ()
        return profile < len(self.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.cudart.refuse_in_capture()
        assert self.profile >= 0, "no profile was chosen"
        least, _, largest = self.profiles[self.profile].get(name, (shape, shape, shape))
        self.shapes[name] = shape
        return all(a <= size <= b for a, size, b in zip(least, shape, largest, strict=True))

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.cudart.refuse_in_capture()
        self.pointers[name] = pointer
        return pointer % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        if self.cudart.captured is None:
            self._compute()
            self.warm = self._bound()
            return True
        # The first run on new shapes takes memory and sets them up, which a capture does not allow.
        assert self.is_settled, "captured kernels that may still be replaced by better ones"
        assert self.warm == self._bound(), "captured what did not run on these shapes and addresses before"
        bound = self._bound()
        self.cudart.captured.work.append(lambda: self._replay(bound))
        return True

    def _bound(self) -> tuple[object, ...]:
        return (self.profile, tuple(sorted(self.shapes.items())), tuple(sorted(self.pointers.items())))

    def _replay(self, bound: tuple[object, ...]) -> None:
        assert bound == self._bound(), "launched after the context was bound to something else"
        self._compute()

    def _compute(self) -> None:
        inputs = {i.name: self._view(i.name, self.shapes[i.name], i.type).copy() for i in self.session.get_inputs()}
        for output, array in zip(self.session.get_outputs(), self.session.run(None, inputs), strict=True):
            if output.name.startswith("present_"):
                assert self.pointers[output.name] == self.pointers[output.name.replace("present", "past")]
            self._view(output.name, array.shape, output.type)[...] = array

    def _view(self, name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
        dtype = np.dtype(DTYPES[kind.removeprefix("tensor(").removesuffix(")")])
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        self.cudart.check_held(self.pointers[name], num_bytes)
        memory = (ctypes.c_uint8 * num_bytes).from_address(self.pointers[name])
        return np.frombuffer(memory, dtype).reshape(shape)


@dataclass(slots=True)
class FakeRuntimeConfig:
    """How a context of RTX runs; what it has no word for cannot be set."""

    memory: int = 0
    dynamic_shapes_kernel_specialization_strategy: int = 0

    def set_execution_context_allocation_strategy(self, strategy: int) -> None:
        self.memory = strategy


def open_plan(path: Path, profiles: list[Profile], cudart: FakeCudart, is_rtx: bool) -> SimpleNamespace:
    """Return an engine, which wants its memory taken for one profile at a time."""

    def create_execution_context(settings: int | FakeRuntimeConfig) -> FakeContext:
        is_config = isinstance(settings, FakeRuntimeConfig)
        assert (settings.memory if is_config else settings) == 1, "memory for all profiles"
        is_eager = is_config and settings.dynamic_shapes_kernel_specialization_strategy == 1
        return FakeContext(str(path), profiles, cudart, is_settled=is_eager or not is_rtx)

    methods = {"create_runtime_config": FakeRuntimeConfig} if is_rtx else {}
    return SimpleNamespace(create_execution_context=create_execution_context, **methods)


def fake_tensorrt(
    profiles_by_part: dict[str, list[Profile]], cudart: FakeCudart, is_rtx: bool = False
) -> SimpleNamespace:
    """Return a stand-in for the vendor's module, whose plans of each part have these profiles."""

    class Module(SimpleNamespace):
        __hash__ = object.__hash__  # as modules, by identity

    class Logger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    class Runtime:
        def __init__(self, logger: object) -> None:
            pass

        def deserialize_cuda_engine(self, plan: bytes) -> SimpleNamespace | None:
            path = Path(bytes(plan).decode(errors="replace"))
            if not path.is_file():
                return None
            profiles = profiles_by_part[path.name.split(".")[0]]
            return open_plan(path, profiles, cudart, is_rtx)

    strategies = SimpleNamespace(LAZY=0, EAGER=1, NONE=2)
    return Module(
        **({"DynamicShapesKernelSpecializationStrategy": strategies} if is_rtx else {}),
        __version__="0.0",
        ExecutionContextAllocationStrategy=SimpleNamespace(ON_PROFILE_CHANGE=1),
        ILogger=Logger,
        INetworkDefinition=SimpleNamespace(**{"add_kv_cache_update": None} if reads_a_cache_in_place() else {}),
        Runtime=Runtime,
    )
