"""Recipes are checked to the last value, and those of `engines/` are sound."""

from pathlib import Path

import pytest

from nvila_ros.errors import ConfigError
from nvila_ros.models.variants import VARIANTS
from nvila_ros.recipes import DEVICES, Recipe, find_recipe, read_recipe

ENGINES = Path(__file__).resolve().parents[1] / "engines"
NAMES = sorted(path.name.removesuffix(".yaml") for path in ENGINES.glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_recipe_of_the_repository_is_sound(name: str) -> None:
    recipe = read_recipe(name)

    assert recipe.name == name
    assert recipe.model in {"nvila-tiny", *VARIANTS}
    assert name == f"{recipe.model.lower()}.{recipe.device}"


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
        ("- model", "must hold a mapping with model and device, got list"),
        ("model: [", "not readable as YAML"),
        ("model: m", "must name device"),
        ("device: cpu", "must name model"),
        ("model: m\ndevice: tpu", r"device must be one of \['cpu', .*got 'tpu'"),
        ("model: m\ndevice: cpu\nvisoin: {}", r"unknown sections \['visoin'\]; known are model, device, vision"),
        ("model: m\ndevice: cpu\nvision: w8a8", "vision must hold a mapping, got 'w8a8'"),
        ("model: m\ndevice: cpu\nvision: {precision: int8}", r"vision: precision must be one of \['w8a8'"),
        ("model: m\ndevice: cpu\nvision: {smoth: 1}", r"vision: unknown parameter 'smoth'; did you mean .*smooth"),
        ("model: m\ndevice: cpu\nvision: {smooth: 2}", r"smooth must lie in \[0, 0.9\]"),
        ("model: m\ndevice: cpu\ndecoder: {awq: 1}", "awq must be of type bool, got 1"),
        ("model: m\ndevice: cpu\nlimits: {batch_tiles: 0}", r"batch_tiles must lie in \[1, 64\]"),
        ("model: m\ndevice: thor", "thor runs TensorRT, which cannot scale activations per token; set vision"),
    ],
)
def test_what_breaks_a_rule_is_named_with_the_file(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule) as told:
        read_recipe(write(tmp_path, text))

    assert "mine.yaml" in str(told.value)


def test_unknown_recipe_is_told_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"no recipe at 'nvila-3b'; give a file or one of .*nvila-tiny.cpu"):
        find_recipe("nvila-3b")


def test_readme_of_the_recipes_names_every_value() -> None:
    text = (ENGINES / "README.md").read_text()

    assert all(f"`{name}`" in text for name in ("model", "device", "vision", "decoder", "calibration", "limits"))
    assert all(device in text for device in DEVICES)
