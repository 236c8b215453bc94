"""How long a build takes, foretold: scaled by what there is to do, and near to what a layer then takes."""

import dataclasses

import pytest
import torch

from nvila_ros.builds import forecast
from nvila_ros.builds.forecast import forecast_build
from nvila_ros.builds.recipes import CalibrationRecipe, DecoderRecipe, Recipe, VisionRecipe
from nvila_ros.builds.weights import describe_time
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.spec import ModelSpec
from nvila_ros.models.variants import VARIANTS
from nvila_ros.runtime.loading import find_checkpoint


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    return open_checkpoint(find_checkpoint("nvila-tiny")).spec


def recipe(**sections: object) -> Recipe:
    calibration = CalibrationRecipe(media="tiny-world", num_samples=2)
    return Recipe(**{"name": "mine", "model": "nvila-tiny", "device": "cpu", "calibration": calibration, **sections})


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each layer take as long as it says, whatever this machine does: 1 s a tile, 2 s a layer, and so on."""
    monkeypatch.setattr(forecast, "_time_tower", lambda spec, options, device: (1.0, 2.0))
    monkeypatch.setattr(forecast, "_time_decoder", lambda spec, options, device: (0.01, 5.0))


@pytest.mark.usefixtures("steady")
def test_time_grows_with_layers_tiles_and_tokens(spec: ModelSpec) -> None:
    once = forecast_build(recipe(), spec)
    more = forecast_build(recipe(calibration=CalibrationRecipe(media="tiny-world", num_samples=4)), spec)
    deep = dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, num_layers=2 * spec.decoder.num_layers))

    assert more.calibration == pytest.approx(2 * once.calibration)
    assert forecast_build(recipe(), deep).decoder == pytest.approx(2 * once.decoder)
    tokens = (more.decoder - once.decoder) / spec.decoder.num_layers / 0.01 / 2
    assert once.decoder == pytest.approx(spec.decoder.num_layers * (5 + 2 * tokens * 0.01))


@pytest.mark.usefixtures("steady")
def test_what_stays_float_takes_no_time(spec: ModelSpec) -> None:
    made = forecast_build(recipe(vision=VisionRecipe(precision="fp16"), decoder=DecoderRecipe(precision="fp16")), spec)
    assert made.total == 0


@pytest.mark.usefixtures("steady")
def test_a_large_layer_is_timed_in_small_and_scaled_by_its_weights() -> None:
    large, small = (spec.decoder for spec in (VARIANTS["NVILA-8B"].spec, forecast._shrink(VARIANTS["NVILA-8B"].spec)))
    assert (small.num_heads, small.num_kv_heads, small.head_size) == (4, 1, 128)
    assert small.mlp_width / small.width == pytest.approx(large.mlp_width / large.width, rel=0.1)
    made = forecast_build(recipe(), VARIANTS["NVILA-8B"].spec)
    assert made.decoder > large.num_layers * 5 * 40


def test_layers_are_really_run(spec: ModelSpec) -> None:
    before = torch.get_num_threads()

    made = forecast_build(recipe(), spec)

    assert min(made.calibration, made.tower, made.decoder) >= 0
    assert 0 < made.total < 3600
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (5399, "90 min"), (9000, "2.5 h")]
)
def test_times_are_said_for_people(seconds: float, text: str) -> None:
    assert describe_time(seconds) == text
