"""From a model's name to a loaded engine."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from pathlib import Path

from nvila_ros.errors import BackendError, CheckpointError
from nvila_ros.hub.local import find_fetched
from nvila_ros.hub.published import fetch_command, find_published
from nvila_ros.models.build import Build, is_build, open_build
from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.models.variants import weight_bytes
from nvila_ros.paths import build_folder, share_path
from nvila_ros.runtime.contract import Engine
from nvila_ros.runtime.rounded import AUTO, AnyModel, choose_precision

MODULES = {
    "onnxruntime": "nvila_ros.runtime.onnxruntime.engine",
    "cpu": "nvila_ros.runtime.cpu.engine",
    "tensorrt": "nvila_ros.runtime.tensorrt.engine",
    "cuda": "nvila_ros.runtime.cuda.engine",
    "torch": "nvila_ros.runtime.torch_engine",
}
"""The module of each backend's engine; imported only when it is needed."""
BACKENDS = tuple(MODULES)
GPU_FILES = (Path("/dev/nvidia0"), Path("/dev/nvhost-gpu"), Path("/dev/nvgpu"))
"""Device files of NVIDIA's GPUs, on workstations and on Jetson."""
MAX_FLOAT_BYTES = 1 << 30
"""Of a checkpoint in float32 that a CPU still reads fast enough for an answer in seconds."""
_log = logging.getLogger(__name__)
SIMULATOR = "nvila_ros.quantization.simulate"  # torch with quantized weights


def open_model(path: Path) -> Checkpoint | Build:
    """Open a checkpoint or a build.

    Raises:
        CheckpointError: it is neither, or not complete.
    """
    return open_build(path) if is_build(path) else open_checkpoint(path)


def choose_backend(source: Checkpoint | Build, backend: str = AUTO) -> str:
    """Return a backend; for `AUTO` that of a build's device, and for a checkpoint `cuda` where a GPU holds it.

    Without such a GPU, ONNX Runtime computes in float32; a checkpoint of more than `MAX_FLOAT_BYTES` is left to the
    backend of a CPU, which rounds it while it is read.
    """
    if backend != AUTO:
        return backend
    if isinstance(source, Build):
        return backend_for(source.recipe["device"])
    why_not = why_not_cuda(source)
    if not why_not:
        return "cuda"
    is_large = sum(weight_bytes(source.spec, "fp32").values()) > MAX_FLOAT_BYTES
    chosen = backend_for("cpu") if is_large else "onnxruntime"
    _log.info("backend %s: %s", chosen, why_not)
    return chosen


def why_not_cuda(source: Checkpoint) -> str:
    """Return why a GPU cannot run a checkpoint by torch; empty if it can.

    torch, which takes seconds to import, is asked only where there is a GPU's device file.
    """
    if not any(path.exists() for path in GPU_FILES):
        return "this machine has no NVIDIA GPU"
    if importlib.util.find_spec("torch") is None:
        return "there is a GPU, but torch is not installed, which backend cuda needs"
    from nvila_ros.runtime.cuda.device import why_not_on_gpu

    return why_not_on_gpu(source.spec)


def backend_for(device: str) -> str:
    """Return the backend of a recipe's device; for a CPU `cpu` where OpenVINO is installed, else `onnxruntime`."""
    if device != "cpu":
        return "tensorrt"
    return "cpu" if importlib.util.find_spec("openvino") else "onnxruntime"


def load_engine(source: AnyModel, backend: str, threads: int = 0, precision: str = AUTO) -> Engine:
    """Load an opened checkpoint or build for a backend, in a precision as `choose_precision` takes it.

    Raises:
        CheckpointError: it is not complete.
        BackendError: the backend is unknown or not installed, or the precision is none that it offers.
    """
    if backend not in BACKENDS:
        raise BackendError(f"unknown backend {backend!r}; known are {list(BACKENDS)}")
    chosen = choose_precision(source, backend, precision)
    try:
        is_simulated = backend == "torch" and isinstance(source, Build)
        module = importlib.import_module(SIMULATOR if is_simulated else MODULES[backend])
    except ModuleNotFoundError as error:
        raise BackendError(f"backend {backend} needs {error.name!r}; install it beside nvila_ros") from error
    return module.load(chosen, threads)


def has_checkpoint(model: str) -> bool:
    """Return whether `find_checkpoint` finds it."""
    try:
        return bool(find_checkpoint(model))
    except CheckpointError:
        return False


def find_checkpoint(model: str) -> Path:
    """Return the folder of a checkpoint or build given as a path, or by the name it is embedded, built or published as.

    Raises:
        CheckpointError: there is none; the command that fetches a published one is named.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    embedded, built = share_path("checkpoints"), build_folder()
    if (embedded / model / "config.json").is_file():
        return embedded / model
    if is_build(built / model):
        return built / model
    if fetched := find_fetched(model):
        return fetched
    command = fetch_command(model)
    if command and find_published(model):
        raise CheckpointError(f"{model} is not on this machine; run: {command}")
    names = sorted(config.parent.name for config in embedded.glob("*/config.json"))
    builds = sorted(folder.name for folder in built.glob("*") if is_build(folder))
    raise CheckpointError(
        f"no checkpoint at {model!r}; give a folder, one of the embedded {names}, one of the builds {builds}, or a "
        "published name that nvila fetch lists" + (f"; a repository of that name: {command}" if command else "")
    )
