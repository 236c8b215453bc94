"""A planted world as files, and an unbroken run over it."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A planted world as files."""
    from nvila_ros.training.conversations.planted import PlantedSpec, PlantedWorld, write_world
    from tests.tools.pruning.pruning_runs import NUM_SAMPLES

    return write_world(PlantedWorld(PlantedSpec(num_samples=NUM_SAMPLES)), tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run over it."""
    from tests.tools.pruning.pruning_runs import prune

    out = tmp_path_factory.mktemp("whole") / "out"
    assert prune(data, "--out", out) == 0
    return out
