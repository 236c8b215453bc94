"""One tiny checkpoint for all tests of tuning."""

from __future__ import annotations

import pytest

from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from tests.golden_cases import GOLDEN


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """A tiny random one, in NVILA's original layout."""
    return open_checkpoint(GOLDEN / "lite" / "ckpt")
