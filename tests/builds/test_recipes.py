"""Recipes are checked to the last value, and those of `engines/` are sound."""

import dataclasses
import json
from pathlib import Path

import pytest

from nvila_ros.builds.recipes import (
    ARCHITECTURES,
    DEVICES,
    Recipe,
    changed_weights,
    find_recipe,
    read_recipe,
    recipe_from_dict,
    with_media,
)
from nvila_ros.errors import ConfigError
from nvila_ros.models.variants import VARIANTS
from nvila_ros.runtime.limits import check_prompt_room

ENGINES = Path(__file__).resolve().parents[2] / "engines"
NAMES = sorted(path.name.removesuffix(".yaml") for path in ENGINES.glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_recipe_of_the_repository_is_sound(name: str, caplog: pytest.LogCaptureFixture) -> None:
    recipe = read_recipe(name)

    assert recipe.name == name
    assert recipe.model in {"nvila-tiny", *VARIANTS}
    assert name == f"{recipe.model.lower()}.{recipe.device}"
    if recipe.model in VARIANTS:
        check_prompt_room(VARIANTS[recipe.model].spec, recipe.limits.max_prompt_tokens)
        assert "max_tiles" not in caplog.text


def test_every_value_can_be_set(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
model: /data/mine
device: thor
vision: {precision: fp16, smooth: 0}
decoder: {group_size: 64, head: w4a16, awq: false, clip: false}
calibration: {media: /data/kitchen, num_samples: 8, clip_frames: 4}
limits: {max_prompt_tokens: 512, max_answer_tokens: 16, batch_tiles: 4}
""",
    )

    recipe = read_recipe(path)

    assert recipe.name == "mine"
    assert recipe.vision.smooth == 0.0
    assert (recipe.decoder.group_size, recipe.decoder.awq) == (64, False)
    assert recipe.limits.batch_tiles == 4


def test_defaults_are_those_of_a_recipe_that_says_nothing(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, "model: m\ndevice: cpu\nvision:\n")) == Recipe(
        name="mine", model="m", device="cpu"
    )


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("- model", "must be a mapping with model and device, got list"),
        ("model: [", "not readable as YAML"),
        ("model: m", "must name device"),
        ("device: cpu", "must name model"),
        ("model: m\ndevice: tpu", r"device must be one of \['cpu', .*got 'tpu'"),
        ("model: m\ndevice: cpu\nvisoin: {}", r"unknown sections \['visoin'\]; known are model, device, vision"),
        ("model: m\ndevice: cpu\nvision: w8a8", "vision must be a mapping, got 'w8a8'"),
        ("model: m\ndevice: cpu\nvision: {precision: int8}", r"vision: precision must be one of \['w8a8'"),
        ("model: m\ndevice: cpu\nvision: {smoth: 1}", r"vision: unknown parameter 'smoth'; did you mean .*smooth"),
        ("model: m\ndevice: cpu\nvision: {smooth: 2}", r"smooth must lie in \[0, 0.9\]"),
        ("model: m\ndevice: cpu\ndecoder: {awq: 1}", "awq must be of type bool, got 1"),
        ("model: m\ndevice: cpu\nlimits: {batch_tiles: 0}", r"batch_tiles must lie in \[1, 64\]"),
        (
            "model: m\ndevice: thor\nvision: {precision: fp32}",
            "thor runs TensorRT, whose graphs have fp16 or fewer bits",
        ),
        ("model: m\ndevice: thor\ndecoder: {precision: fp32}", "set vision.precision and decoder.precision to others"),
        ("model: m\ndevice: thor", "thor runs TensorRT, which cannot scale activations per token; set vision"),
    ],
)
def test_what_breaks_a_rule_is_named_with_the_file(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as told:
        read_recipe(write(tmp_path, text))

    assert "mine.yaml" in str(told.value)


@pytest.mark.parametrize("name", NAMES)
def test_recipe_comes_back_from_a_manifest(name: str) -> None:
    recipe = read_recipe(name)

    assert recipe_from_dict(json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_manifest_without_a_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="a recipe must name model"):
        recipe_from_dict({"name": "mine", "device": "cpu"})


def test_weights_depend_on_all_of_a_recipe_but_its_name_and_limits() -> None:
    recipe = read_recipe("nvila-tiny.rtx-4090")
    told = json.loads(json.dumps(dataclasses.asdict(recipe)))

    told["limits"]["batch_tiles"], told["name"] = 7, "theirs"
    assert changed_weights(told, recipe) == []
    told["decoder"]["group_size"], told["device"] = 64, "thor"
    assert changed_weights(told, recipe) == ["decoder.group_size", "device"]
    told["calibration"]["media"] = "/kitchen"
    assert changed_weights(told, recipe) == ["calibration.media", "decoder.group_size", "device"]
    assert changed_weights(told, with_media(recipe, "/kitchen")) == ["decoder.group_size", "device"]
    left_open = dataclasses.replace(recipe, calibration=dataclasses.replace(recipe.calibration, media=""))
    assert changed_weights(told, left_open) == ["decoder.group_size", "device"]
    told["calibration"]["media"] = recipe.calibration.media
    del told["decoder"]["group_size"]  # a value that came with a later version
    assert changed_weights(told, recipe) == ["device"]


def test_every_device_but_the_cpu_has_an_architecture() -> None:
    assert {"cpu", *ARCHITECTURES} == set(DEVICES)


def test_unknown_recipe_is_told_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"no recipe at 'nvila-3b'; give a file or one of .*nvila-tiny.cpu"):
        find_recipe("nvila-3b")


def test_readme_of_the_recipes_names_every_value() -> None:
    text = (ENGINES / "README.md").read_text()

    assert all(f"`{name}`" in text for name in ("model", "device", "vision", "decoder", "calibration", "limits"))
    assert all(device in text for device in DEVICES)
