"""The tower on our own kernels against OpenVINO's on the same weights, and what is left to OpenVINO."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nvila_ros.errors import ShapeError
from nvila_ros.models.quantized import Int8Weight, Weight
from nvila_ros.models.spec import ModelSpec
from nvila_ros.runtime.cpu.engine import load_quantized
from nvila_ros.runtime.cpu.native_tower import MATRICES, STEM, NativeTower, NativeVision, has_tower
from nvila_ros.runtime.openvino.models import OpenvinoVision
from nvila_ros.runtime.openvino.weights import WeightStore
from nvila_ros.runtime.rounded import round_int8
from tests.runtime.test_engines import make_checkpoint, make_spec

pytestmark = pytest.mark.skipif(not has_tower(), reason="no tiles: the C++ tests run the tower on a model of them")


def make(folder: Path, input_scale: float | None, mlp_width: int = 72) -> tuple[ModelSpec, dict[str, Weight]]:
    """Return a model with a tower in eight bits, whose inner width fills no tile."""
    spec = make_spec("mlp_downsample", False, 2, 3)
    vision = replace(spec.vision, width=64, num_heads=4, mlp_width=mlp_width)
    spec = replace(spec, vision=vision, projector=replace(spec.projector, in_width=64))
    folder.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Weight] = dict(make_checkpoint(folder, spec, 7).load())
    for key in [f"{STEM}.{layer}.{name}.weight" for layer in range(vision.num_live_layers) for name in MATRICES]:
        weights[key] = replace(round_int8(weights[key]), input_scale=input_scale)  # type: ignore[arg-type]
    return spec, weights


def tiles(spec: ModelSpec, count: int) -> np.ndarray:
    shape = (count, 3, spec.vision.image_px, spec.vision.image_px)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("input_scale", [0.03, None])
def test_features_are_those_of_openvino(tmp_path: Path, input_scale: float | None) -> None:
    spec, weights = make(tmp_path, input_scale)
    ours = load_quantized(spec, weights, 2)
    theirs = OpenvinoVision(spec, weights, WeightStore(), 1)
    tile_NCHW = tiles(spec, 3)

    got, want = ours.vision(tile_NCHW), theirs.vision(tile_NCHW)

    assert isinstance(ours._tower, NativeVision)
    assert got.shape == want.shape
    assert np.corrcoef(got.ravel(), want.ravel())[0, 1] > 0.999
    np.testing.assert_allclose(ours.project(want), theirs.project(want), atol=1e-4)


def test_a_tile_has_the_same_features_alone_and_among_others(tmp_path: Path) -> None:
    spec, weights = make(tmp_path, None)
    engine = load_quantized(spec, weights, 2)
    tile_NCHW = tiles(spec, 2)

    np.testing.assert_array_equal(engine.vision(tile_NCHW)[1:], engine.vision(tile_NCHW[1:]))


def test_what_no_kernel_knows_is_left_to_openvino(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    spec, weights = make(tmp_path, 0.03)
    key = f"{STEM}.0.self_attn.k_proj.weight"
    weight = weights[key]
    assert isinstance(weight, Int8Weight)

    for other in (replace(weight, input_scale=0.05), weight.dequantize().T.copy()):
        engine = load_quantized(spec, weights | {key: other}, 1)
        assert isinstance(engine._tower, OpenvinoVision)

    assert "round their input by different scales" in caplog.text
    assert "has no eight-bit weights" in caplog.text


def test_patches_of_another_shape_are_refused(tmp_path: Path) -> None:
    spec, weights = make(tmp_path, 0.03)
    tower = NativeTower(spec.vision, weights, 1)

    with pytest.raises(ShapeError, match="patches must have"):
        tower.run(np.zeros((spec.vision.num_patches, spec.vision.width - 1), np.float32))
