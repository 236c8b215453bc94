"""A builder of plans that needs no TensorRT: its plans are the paths that `fake_tensorrt` runs."""

import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nvila_ros.export.forms import TRT_BASE
from nvila_ros.runtime.tensorrt.api import OnProgress
from nvila_ros.runtime.tensorrt.builder import BuildOptions, Built, Limits, Profile
from nvila_ros.runtime.tensorrt.compile import CompileJob
from nvila_ros.runtime.tensorrt.machine import Machine

MACHINE = Machine(flavour="tensorrt", version="0.0", architecture="sm_87", num_sms=16)
"""What `fake_tensorrt` and `FakeCudart` say that they are."""
JOB = CompileJob(trt=None, machine=MACHINE, form=TRT_BASE, limits=Limits(max_tiles=2, max_chunk=64, capacity=512))


class FakeBuilder:
    """Takes the place of `build_plan`.

    Args:
        store: keeps what the plans point at: the graphs, and the weights that lie beside them.

    Attributes:
        built: names of the graphs, as they were built.
    """

    def __init__(self, store: Path) -> None:
        self.built: list[str] = []
        self._store, self._count = store, itertools.count()

    def __call__(
        self,
        trt: Any,
        graph: Path,
        profiles: Sequence[Profile],
        capacity: int,
        options: BuildOptions,
        on_progress: OnProgress,
    ) -> Built:
        folder = self._store / str(next(self._count))
        shutil.copytree(graph.parent, folder)
        for share in (0.5, 1.0):
            on_progress("copying", share)
        self.built.append(graph.name)
        plan = memoryview(str(folder / graph.name).encode())
        return Built(plan=plan, kernels=(), warnings=(), timings=b"measured" + options.timings[:4], build_s=0.1)


def raise_if_loaded(*_: object) -> Callable[..., None]:
    """Take the place of what must not be reached."""
    raise AssertionError("a plan was loaded that should have been refused before")
