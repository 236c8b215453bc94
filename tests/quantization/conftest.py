"""One small checkpoint and what calibration makes of a few pictures, for all tests of quantization."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from tests.golden_cases import GOLDEN, read_image

if TYPE_CHECKING:  # a folder whose conftest needs torch could not even be collected without it
    from nvila_ros.quantization.calibration import Calibration, CalibrationSample


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    pytest.importorskip("torch").set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    return open_checkpoint(GOLDEN / "video" / "ckpt")


@pytest.fixture(scope="session")
def samples() -> list[CalibrationSample]:
    from nvila_ros.quantization.calibration import CalibrationSample

    image = read_image(GOLDEN / "media" / "small.png")
    clip = tuple(np.roll(image, 5 * i, axis=1) for i in range(8))
    return [
        CalibrationSample((image,), "What is it?"),
        CalibrationSample(clip, "Where to?"),
        CalibrationSample((image[::-1].copy(),), "How many?"),
    ]


@pytest.fixture(scope="session")
def calibration(checkpoint: Checkpoint, samples: list[CalibrationSample]) -> Calibration:
    from nvila_ros.quantization.calibration import calibrate

    return calibrate(checkpoint, ChatTokenizer.from_folder(checkpoint.tokenizer_folder), samples)
