"""Calibration sees what the model sees when it is asked."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from nvila_ros.errors import FrameError
from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.quantization.calibration import QUESTIONS, Calibration, CalibrationSample, calibrate, read_samples
from nvila_ros.runtime.torch_engine import TorchEngine
from nvila_ros.serving.pipeline import CacheLimits, VisionLanguageModel
from nvila_ros.types import Frame, Query
from tests.golden_cases import GOLDEN


class RecordingEngine(TorchEngine):
    """Keeps what the flow gives the engine."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.tiles: list[np.ndarray] = []
        self.prompts: list[np.ndarray] = []

    def vision(self, tile_NCHW: np.ndarray) -> np.ndarray:
        self.tiles.append(tile_NCHW)
        return super().vision(tile_NCHW)

    def forward(self, embeds_LD: np.ndarray, cache) -> np.ndarray:
        self.prompts.append(embeds_LD)
        return super().forward(embeds_LD, cache)


@pytest.mark.parametrize("name", ["lite", "s2", "video"])
def test_tiles_and_prompts_are_those_of_the_production_flow(name: str, samples: list[CalibrationSample]) -> None:
    checkpoint = open_checkpoint(GOLDEN / name / "ckpt")
    tokenizer = ChatTokenizer.from_folder(checkpoint.tokenizer_folder)
    samples = [samples[0], samples[1]]

    calibration = calibrate(checkpoint, tokenizer, samples)

    engine = RecordingEngine(checkpoint)
    vlm = VisionLanguageModel(engine, tokenizer, backend="torch", limits=CacheLimits(frame_bytes=0, num_prefixes=0))
    for sample in samples:
        frames = [Frame(image=image, stamp_ns=i) for i, image in enumerate(sample.images)]
        vlm.answer(Query(query_id="1", question=sample.question, max_tokens=1), frames)
    assert np.array_equal(np.concatenate(engine.tiles), calibration.tile_NCHW)
    prompts = [prompt_LD for prompt_LD in engine.prompts if len(prompt_LD) > 1]
    assert len(prompts) == len(calibration.prompts_LD)
    for got_LD, want_LD in zip(calibration.prompts_LD, prompts, strict=True):
        assert np.allclose(got_LD, want_LD, atol=1e-4)


def test_a_folder_gives_its_images_in_natural_order_then_its_videos(tmp_path: Path) -> None:
    for i in (10, 2):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((4, 6, 3), i, np.uint8))
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (16, 16))
    for i in range(6):
        writer.write(np.full((16, 16, 3), 40 * i, np.uint8))
    writer.release()

    samples = list(read_samples(tmp_path, 3))

    assert [int(sample.images[0][0, 0, 0]) for sample in samples[:2]] == [2, 10]
    assert [len(sample.images) for sample in samples] == [1, 1, 3]
    assert [sample.question for sample in samples] == list(QUESTIONS[:3])


def test_media_that_are_not_there_are_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    tokenizer = ChatTokenizer.from_folder(checkpoint.tokenizer_folder)

    with pytest.raises(FrameError, match="calibration media must be a folder"):
        next(read_samples(tmp_path / "none", 8))
    with pytest.raises(FrameError, match="at least one sample"):
        calibrate(checkpoint, tokenizer, read_samples(tmp_path, 8))


def test_prompts_hold_visual_tokens(calibration: Calibration, checkpoint: Checkpoint) -> None:
    one, clip, other = (len(prompt_LD) for prompt_LD in calibration.prompts_LD)

    assert calibration.tile_NCHW.shape[0] == 1 + 8 + 1
    assert min(one, clip, other) > checkpoint.spec.tokens_per_tile
