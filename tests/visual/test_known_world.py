"""nvila-tiny notices that it sees no world of its own: seldom in its world, most often outside it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nvila_ros.errors import CheckpointError
from nvila_ros.paths import share_path
from nvila_ros.runtime.loading import load_engine, open_model
from nvila_ros.types import Frame
from nvila_ros.visual.frame_encoder import FrameEncoder, SilentProgress
from nvila_ros.visual.known_world import FILE, NUM_LAST, WorldScore, WorldWatch, pool, weights_digest
from nvila_ros.world.photographs import EXAMINATION, crop_photograph
from nvila_ros.world.wide_suite import eval_wide_case, render_either

TINY = share_path("checkpoints", "nvila-tiny")
WIDTH = 256
NEAR, FAR = np.full((1, 4, 2), -1.0), np.full((1, 4, 2), 1.0)
SIMPLE = WorldScore(np.array([1, 1, 0, 0, 0, 0, 0, 0], np.float32), 0.0)


@pytest.fixture(scope="module")
def encoder() -> FrameEncoder:
    return FrameEncoder(load_engine(open_model(TINY), "onnxruntime", 1), 0, 0.0)


def share_far(encoder: FrameEncoder, images: list[np.ndarray]) -> float:
    world = WorldScore.of(TINY, WIDTH)
    assert world is not None
    frames = [Frame(image=image, stamp_ns=k) for k, image in enumerate(images)]
    encoded = [encoder.encode(frame, SilentProgress(), is_alone=True) for frame in frames]
    return float(np.mean([world.is_far(each.visual_BGD) for each in encoded]))


def test_score_is_of_the_weights_beside_it() -> None:
    assert json.loads((TINY / FILE).read_text())["of"] == weights_digest(TINY), (
        "run: python -m benchmarks.known_world --write"
    )


def test_its_own_world_is_seldom_far(encoder: FrameEncoder) -> None:
    cases = [eval_wide_case(tier, k) for tier in ("usual", "small", "turned", "dark", "many") for k in range(8)]

    assert share_far(encoder, [render_either(case.scene, 0.0, 320, 240) for case in cases]) <= 0.05


def test_photographs_that_training_never_showed_are_far(encoder: FrameEncoder) -> None:
    pytest.importorskip("skimage", reason="pip install 'nvila_ros[photographs]'")
    crops = [crop_photograph(name, 1000 + seed, 4 / 3, 320, 240) for name in EXAMINATION for seed in range(6)]

    assert share_far(encoder, crops) >= 0.8


def test_tokens_are_pooled() -> None:
    tokens = np.array([[[1.0, 2.0], [3.0, 6.0]]], np.float32)

    assert pool(tokens).tolist() == [2, 4, 3, 6, 1, 2, 1, 2]


def test_warning_needs_most_of_several_frames() -> None:
    watch = WorldWatch(SIMPLE, "tiny")
    for _ in range(3):
        watch.see(FAR)
    assert watch.warning() == ""
    assert "that tiny was trained on" in watch.warning(least=1)

    watch.see(FAR)
    assert watch.warning()
    watch.see(NEAR)
    assert watch.warning()  # 4 of 5
    watch.see(NEAR)
    assert watch.warning() == ""  # 4 of 6
    for _ in range(NUM_LAST):
        watch.see(FAR)
    watch.forget()
    assert watch.warning(least=0) == ""


def test_model_without_a_score_is_never_judged(tmp_path: Path) -> None:
    assert WorldScore.of(tmp_path, WIDTH) is None
    watch = WorldWatch(None, "other")
    for _ in range(NUM_LAST):
        watch.see(FAR)
    assert watch.warning(least=1) == ""


@pytest.mark.parametrize(
    "text",
    ["", "[1]", "{}", '{"weights": [1], "bias": 0}', '{"weights": ["a"], "bias": 0}', '{"weights": [[1, 2], [3]]}'],
)
def test_damaged_score_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)

    with pytest.raises(CheckpointError, match=FILE):
        WorldScore.of(tmp_path, 2)


def test_score_that_is_no_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({"weights": [float("nan")] * 8, "bias": 0}))

    with pytest.raises(CheckpointError, match="finite weights"):
        WorldScore.of(tmp_path, 2)
