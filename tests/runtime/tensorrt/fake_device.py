"""A plugin of pytest that lends the GPU's suite the stand-ins, so that a mistake of its own is found without a GPU."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nvila_ros.runtime.tensorrt import compile as tensorrt_compile
from nvila_ros.runtime.tensorrt import engine as tensorrt_engine
from nvila_ros.runtime.tensorrt.builder import Built, Profile
from nvila_ros.runtime.tensorrt.cuda import Cuda
from nvila_ros.tools import build
from tests.gpu import checks
from tests.runtime.tensorrt.fake_build import MACHINE, FakeBuilder
from tests.runtime.tensorrt.fake_tensorrt import FakeCudart, fake_tensorrt

PROFILES: dict[str, list[Profile]] = {}
STORE = tempfile.TemporaryDirectory()


class ProfileRecorder(FakeBuilder):
    """Remembers the profiles, which the stand-in of the runtime must keep to."""

    def __call__(self, trt: Any, graph: Path, profiles: Sequence[Profile], *rest: Any) -> Built:
        PROFILES[graph.name.split(".")[0]] = list(profiles)
        return super().__call__(trt, graph, profiles, *rest)


def find_fake_machine(flavours: object) -> tuple[Any, Any, Cuda]:
    cudart = FakeCudart()
    return fake_tensorrt(PROFILES, cudart), MACHINE, Cuda(cudart)


def pytest_configure(config: pytest.Config) -> None:
    tensorrt_compile.build_plan = ProfileRecorder(Path(STORE.name) / "store")
    tensorrt_engine.find_machine = build.find_machine = find_fake_machine
    checks.NUM_QUESTIONS, checks.EQUAL_ANSWERS = 4, {"fp16": 4, "w8a8+w4a16": 3}


def pytest_collection_finish(session: pytest.Session) -> None:
    for item in session.items:
        item.module.find_machine = find_fake_machine
        item.module.NUM_STEPS = 8
