"""A planted world as files, and unbroken runs over it."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted world as files; an epoch of steps of four ends with one sample, which one of two ranks lacks."""
    from nvila_ros.training.conversations.planted import PlantedSpec, PlantedWorld, write_world

    return write_world(PlantedWorld(PlantedSpec(num_samples=9)), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run of eight steps."""
    from tests.tools.finetuning.runs import finetune

    out = tmp_path_factory.mktemp("whole") / "out"
    assert finetune(data, "--out", out, "--steps", 8, "--save-every", 3) == 0
    return out


@pytest.fixture(scope="session")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in a process of its own, which has one thread: on their number sums depend."""
    from tests.tools.finetuning.runs import start

    out = tmp_path_factory.mktemp("unbroken") / "out"
    _, err = (process := start(data, "--out", out, "--steps", 8, "--save-every", 3)).communicate(timeout=180)
    assert process.returncode == 0, err
    return out
