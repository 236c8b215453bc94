"""The differences between TensorRT's versions and flavours: 10.3 to 11.x on a robot, TensorRT-RTX elsewhere.

Features are detected by attribute, never by version number. In this folder the vendor's objects have only names such as
`trt`, `builder` or `_context` (`HOLDERS` in tests, tensorrt_names.py): a test looks up every attribute used on them in
the real bindings of each version, since none of them loads without a GPU.

TensorRT-RTX is the only flavour that builds without a GPU: it compiles ahead of time for named GPUs. It supports
desktop GPUs and no Jetson; plans for a Jetson are built by TensorRT on the device itself.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nvila_ros.errors import BackendError

FLAVOURS = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
"""Modules of each flavour; the wheels of RTX have only their bindings."""

OnProgress = Callable[[str, float], None]
"""Called with the phase and the finished share of the build, 0 to 1; an exception from it ends the build."""


def load_api(flavour: str) -> Any:
    """Return the vendor's module.

    Raises:
        BackendError: it is unknown, or not installed.
    """
    if flavour not in FLAVOURS:
        raise BackendError(f"unknown flavour of TensorRT {flavour!r}; known are {list(FLAVOURS)}")
    missing = []
    for name in FLAVOURS[flavour]:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            missing.append(str(error))
    hint = (
        "it comes with JetPack, elsewhere pip install tensorrt"
        if flavour == "tensorrt"
        else "pip install tensorrt-rtx-cu12-libs and -bindings"
    )
    raise BackendError(f"{flavour} cannot be loaded ({'; '.join(missing)}); {hint}")


@dataclass(slots=True)
class Log:
    """Messages of a build: errors, warnings, and the list of its kernels."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    kernels: list[str] = field(default_factory=list)

    def add(self, is_error: bool, is_warning: bool, message: str) -> None:
        """Keep errors, warnings and kernels; the rest of a verbose log is large."""
        if is_error:
            self.errors.append(message)
        elif is_warning:
            self.warnings.append(message)
        else:
            self.kernels += [line for line in message.splitlines() if line.startswith("Name: ")]


def open_log(trt: Any) -> tuple[Any, Log]:
    """Return the process's logger and a new log that it writes to from now on."""
    logger = _logger(trt)
    logger.kept = Log()
    return logger, logger.kept


def last_error(trt: Any) -> str:
    """Return TensorRT's last error message, and remove it."""
    errors = _logger(trt).kept.errors
    return errors.pop().strip() if errors else "it gave no reason"


@functools.cache
def _logger(trt: Any) -> Any:
    """Return the one logger of a flavour: TensorRT keeps the first that it gets and ignores all later ones."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # the bindings want it called by name
            self.kept = Log()

        def log(self, severity: Any, message: str) -> None:
            is_error = severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
            self.kept.add(is_error, severity == trt.ILogger.Severity.WARNING, message)

    return Logger()


@dataclass(slots=True)
class BuildPhase:
    """A phase of a build, which is one step of its parent phase."""

    parent: BuildPhase | None
    num_steps: int
    num_done: int = 0

    def reached(self, share: float = 0.0) -> float:
        """Return the finished share of the outermost phase, including `share` of this phase's current step."""
        mine = min((self.num_done + share) / self.num_steps, 1.0)
        return mine if self.parent is None else self.parent.reached(mine)


def make_monitor(trt: Any, on_progress: OnProgress) -> Any:
    """Return a monitor for a config; the config does not keep it alive."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases: dict[str, BuildPhase] = {}
            self.share = 0.0
            self.error: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases[phase_name] = BuildPhase(self.phases.get(parent_phase or ""), max(num_steps, 1))

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                if phase_name in self.phases:
                    self.phases[phase_name].num_done = step + 1
                    # Phases repeat for every layer, but reported progress never decreases.
                    self.share = max(self.share, self.phases[phase_name].reached())
                on_progress(phase_name, self.share)
            except BaseException as error:  # it must not pass through the vendor's frames; `build_plan` raises it
                self.error = error
            return self.error is None

        def phase_finish(self, phase_name: str) -> None:
            self.phases.pop(phase_name, None)

    return Monitor()


def open_context(trt: Any, engine: Any, profile: int, stream: int, keeps_shape: bool = False) -> Any:
    """Return a context of one profile, with scratch memory for that profile alone.

    Args:
        trt: the vendor's module.
        engine: a loaded plan.
        profile: number of the profile.
        stream: on which the profile is set.
        keeps_shape: all calls have one shape, as captured steps must have.

    Raises:
        BackendError: there is no memory for it.
    """
    context = engine.create_execution_context(_context_settings(trt, engine, keeps_shape))
    if context is None or not context.set_optimization_profile_async(profile, stream):
        raise BackendError(f"TensorRT gave no context for profile {profile}; free memory of the device")
    return context


def _context_settings(trt: Any, engine: Any, keeps_shape: bool) -> Any:
    """Return the allocation strategy and, for RTX, when kernels are compiled.

    RTX starts with kernels for any shape and compiles specialized ones in the background, to which later calls switch.
    A step captured before the switch would keep the slow kernels, and its rounding would differ from later steps. So a
    context of one shape compiles its kernels first; prompts, which differ in length, do not wait.

    Source: TensorRT-RTX's manual, "Working with RTX CUDA Graphs".
    """
    memory = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
    if not (keeps_shape and hasattr(trt, "DynamicShapesKernelSpecializationStrategy")):
        return memory
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(memory)
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    return config


def has_cache_in_place(trt: Any) -> bool:
    """Whether the graphs of `TRT_KV` can be built; those of `TRT_BASE` always can."""
    return hasattr(trt.INetworkDefinition, "add_kv_cache_update")


def create_network(trt: Any, builder: Any) -> Any:
    """Return an empty strongly typed network; from 11 on there is no other kind."""
    return builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))


def set_target(trt: Any, config: Any, target: str) -> None:
    """Compile for a GPU by RTX's name, such as `SM86`; empty is the GPU of this machine.

    By default RTX compiles for all GPUs from Ampere on, and such a plan does not run on Turing.

    Raises:
        BackendError: this flavour builds only on the device, or does not know the target.
    """
    if not target:
        return
    if not _is_rtx(config):
        raise BackendError(
            f"TensorRT builds for the GPU it runs on, got target {target!r}; use tensorrt_rtx or leave it"
        )
    check_target(trt, target)
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, target), 0)


def check_target(trt: Any, target: str) -> None:
    """Check that TensorRT-RTX supports a GPU, such as `SM86`; empty passes. On others none of its plans loads.

    Raises:
        BackendError: it does not.
    """
    if target and not hasattr(trt.ComputeCapability, target):
        known = sorted(name for name in dir(trt.ComputeCapability) if name.startswith("SM"))
        raise BackendError(
            f"TensorRT-RTX {trt.__version__} runs on no GPU {target!r}, only on {known}; use TensorRT itself there"
        )


def limit_workspace(trt: Any, config: Any, limit_bytes: int) -> None:
    """Limit a layer's workspace beside weights and activations; 0 keeps the vendor's limit."""
    if limit_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit_bytes)


def use_timings(config: Any, timings: bytes) -> None:
    """Use the timings of an earlier build; may be empty.

    TensorRT refuses timings of another version or GPU with a message, and measures again. RTX measures nothing when it
    builds.
    """
    if not _is_rtx(config):
        timing_cache = config.create_timing_cache(timings)
        config.set_timing_cache(timing_cache, ignore_mismatch=False)


def read_timings(config: Any) -> bytes:
    """Return the timings of this build and those before, for `use_timings`; empty for RTX."""
    timing_cache = None if _is_rtx(config) else config.get_timing_cache()
    return bytes(timing_cache.serialize()) if timing_cache else b""


def _is_rtx(config: Any) -> bool:
    return hasattr(config, "set_compute_capability")
