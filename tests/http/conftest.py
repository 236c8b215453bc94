"""One door with the real nvila-tiny for all tests that ask it, and one with a fake model whose tokens take time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("prometheus_client")

from nvila_ros.serving.pipeline import load_model
from tests.http.serving import Served, scene, serving
from tests.tiny import load_fake


@pytest.fixture(scope="session")
def tiny() -> Iterator[Served]:
    """The real model, which sees one scene."""
    with serving(load_model, "front", "rear", max_age_s=0.0, threads=1) as served:
        for camera in served.cameras.values():
            camera.show(scene())
        yield served


@pytest.fixture
def slow() -> Iterator[Served]:
    """A fake model that takes 20 ms a token."""
    with serving(load_fake, model="fake:0.02", max_age_s=0.0, queue_size=2) as served:
        served.cameras["front"].show(scene())
        yield served
