"""What a plan is bound to: the flavour and version of TensorRT, and the GPU of this machine or a named one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from nvila_ros.errors import BackendError
from nvila_ros.runtime.tensorrt import api
from nvila_ros.runtime.tensorrt.cuda import Cuda, open_cuda

RTX = "tensorrt_rtx"


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Flavour, version and GPU; a plan runs only where all are equal.

    Attributes:
        flavour: one of `api.FLAVOURS`.
        version: of the flavour, exact: TensorRT guarantees no compatibility.
        architecture: of the GPU, such as `sm_87`.
        num_sms: its multiprocessors: all Jetson Orin are sm_87 and tuned separately; 0 for RTX, which does not tune.
    """

    flavour: str
    version: str
    architecture: str
    num_sms: int

    @property
    def label(self) -> str:
        """A label for file names, such as `tensorrt-10.3.0.sm_87x8`."""
        return f"{self.flavour}-{self.version}.{self.architecture}" + (f"x{self.num_sms}" if self.num_sms else "")

    @property
    def target(self) -> str:
        """The GPU as TensorRT-RTX names it, such as `SM86`; empty for TensorRT, which compiles on its GPU."""
        return f"SM{self.architecture.removeprefix('sm_')}" if self.flavour == RTX else ""

    def __str__(self) -> str:
        """Describe it in a message."""
        sms = f" of {self.num_sms} multiprocessors" if self.num_sms else ""
        return f"{self.flavour} {self.version} on {self.architecture}{sms}"


def find_machine(flavours: Collection[str]) -> tuple[Any, Machine, Cuda]:
    """Return the first installed flavour, this machine and a stream of its GPU.

    Raises:
        BackendError: none is installed, there is no GPU, or it is one that TensorRT-RTX does not run on.
    """
    trt, flavour = load_first(flavours)
    cuda = open_cuda()
    architecture, num_sms = cuda.describe()
    machine = Machine(
        flavour=flavour,
        version=trt.__version__,
        architecture=architecture,
        num_sms=0 if flavour == RTX else num_sms,
    )
    api.check_target(trt, machine.target)
    return trt, machine, cuda


def name_machine(target: str) -> tuple[Any, Machine]:
    """Return TensorRT-RTX and a machine with another GPU, such as `SM86`.

    Raises:
        BackendError: RTX is not installed, or does not know the GPU.
    """
    trt = api.load_api(RTX)
    api.check_target(trt, target)
    architecture = f"sm_{target.removeprefix('SM')}"
    return trt, Machine(flavour=RTX, version=trt.__version__, architecture=architecture, num_sms=0)


def load_first(flavours: Collection[str]) -> tuple[Any, str]:
    """Return the first flavour that is installed, and its name.

    Raises:
        BackendError: none is; the message has the cause of each.
    """
    missing = []
    for flavour in flavours:
        try:
            return api.load_api(flavour), flavour
        except BackendError as error:
            missing.append(str(error))
    raise BackendError("; ".join(missing))
