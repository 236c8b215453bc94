"""Recipes: which build to make of a checkpoint for which device, as a Dockerfile describes an image.

In: a YAML file of `engines/`, or one of a user's own. Out: a frozen `Recipe`, every value of which was checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvila_ros.config import check_fields, from_dict, setting
from nvila_ros.errors import ConfigError, shown
from nvila_ros.files import read_yaml
from nvila_ros.paths import share_path
from nvila_ros.runtime.limits import EngineLimits

DEVICES = ("cpu", "orin-nano", "orin-nano-super", "orin-nx", "agx-orin", "thor", "rtx-4090")
ARCHITECTURES = {
    **dict.fromkeys(("orin-nano", "orin-nano-super", "orin-nx", "agx-orin"), ("sm_87",)),
    "thor": ("sm_110", "sm_101"),  # CUDA 13 renamed it
    "rtx-4090": ("sm_89",),
}
"""GPUs of the devices that run TensorRT, as CUDA names them."""
WORLD = "tiny-world"
"""Calibration media that are rendered rather than read from a folder."""
MEDIA = "calibration.media"


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionRecipe:
    """The precision of the tower."""

    precision: str = setting("w8a8", "weights and activations of the tower", choices=("w8a8", "fp16", "fp32"))
    activations: str = setting(
        "per_token",
        "scale of activations: per token when it runs, or one for all, found by calibration; TensorRT takes the latter",
        choices=("per_token", "per_tensor"),
    )
    smooth: float = setting(0.5, "SmoothQuant's share of the activations' range moved into weights", low=0.0, high=0.9)

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderRecipe:
    """The precision of the language model."""

    precision: str = setting("w4a16", "weights of the linear maps", choices=("w4a16", "fp16", "fp32"))
    group_size: int = setting(128, "inputs that share a scale", "inputs", low=16, high=1024)
    head: str = setting("fp16", "the map to the vocabulary", choices=("fp16", "w4a16"))
    awq: bool = setting(True, "scale salient inputs before rounding, as AWQ does")
    clip: bool = setting(True, "search how much of each group's range to clip")

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRecipe:
    """The media that activations are measured on."""

    media: str = setting("", "folder of images and videos of what the robot sees, or tiny-world; to be given if empty")
    num_samples: int = setting(64, "images and clips, with a question each", "samples", low=1, high=4096)
    clip_frames: int = setting(8, "frames of a clip", "frames", low=1, high=256)

    def __post_init__(self) -> None:
        """Check every field."""
        check_fields(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One engine.

    Attributes:
        name: of the recipe's file, without suffix.
        model: a checkpoint's folder, or the name of an embedded or published one.
        device: one of `DEVICES`.
    """

    name: str
    model: str
    device: str
    vision: VisionRecipe = VisionRecipe()
    decoder: DecoderRecipe = DecoderRecipe()
    calibration: CalibrationRecipe = CalibrationRecipe()
    limits: EngineLimits = EngineLimits()

    def __post_init__(self) -> None:
        """Check the combination of sections."""
        if self.device not in DEVICES:
            raise ConfigError(f"device must be one of {list(DEVICES)}, got {shown(self.device)}")
        if self.device != "cpu" and "fp32" in (self.vision.precision, self.decoder.precision):
            raise ConfigError(
                f"{self.device} runs TensorRT, whose graphs have fp16 or fewer bits; set vision.precision and "
                "decoder.precision to others than fp32"
            )
        is_dynamic = self.vision.precision == "w8a8" and self.vision.activations == "per_token"
        if is_dynamic and self.device != "cpu":
            raise ConfigError(
                f"{self.device} runs TensorRT, which cannot scale activations per token; set vision.activations to "
                "per_tensor, or vision.precision to fp16"
            )


SECTIONS = {
    field.name: type(field.default) for field in dataclasses.fields(Recipe) if field.default is not dataclasses.MISSING
}


def read_recipe(source: str | Path) -> Recipe:
    """Read a recipe from a file, or one of `engines/` by its name.

    Raises:
        ConfigError: there is no such recipe, it is not YAML, or a value is outside its rule.
    """
    path = find_recipe(str(source))
    try:
        values = read_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not readable as YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be a mapping with model and device, got {type(values).__name__}")
    try:
        return _from_mapping(path.name.removesuffix(".yaml"), values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """Return a recipe from its plain values, as a build's manifest has them.

    Raises:
        ConfigError: a value is missing or outside its rule.
    """
    return _from_mapping(str(values.get("name", "")), {key: value for key, value in values.items() if key != "name"})


def with_media(recipe: Recipe, media: str) -> Recipe:
    """Return a recipe with other calibration media, or the same recipe where none are named."""
    if not media:
        return recipe
    named = media if media == WORLD else str(Path(media).expanduser().resolve())
    return dataclasses.replace(recipe, calibration=dataclasses.replace(recipe.calibration, media=named))


def changed_weights(built: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return the names of values in which a build's recipe differs from another and on which weights depend.

    Limits are not compared, nor values that only one of the two versions has, nor media that one of them leaves open.
    """
    pairs = _pairs(built, dataclasses.asdict(recipe))
    if not all(pairs.get(MEDIA, ())):
        pairs.pop(MEDIA, None)
    return [name for name, (mine, theirs) in pairs.items() if mine != theirs]


def _pairs(built: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values of both by `section.key`."""
    pairs: dict[str, tuple[Any, Any]] = {}
    for key in wanted.keys() & built.keys() - {"name", "limits"}:
        if isinstance(built[key], dict) and isinstance(wanted[key], dict):
            pairs |= {f"{key}.{name}": both for name, both in _pairs(built[key], wanted[key]).items()}
        else:
            pairs[key] = (built[key], wanted[key])
    return dict(sorted(pairs.items()))


def find_recipe(source: str) -> Path:
    """Return the path of a recipe given as a file or by name.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return path
    known = {recipe.name.removesuffix(".yaml"): recipe for recipe in sorted(share_path("engines").glob("*.yaml"))}
    if source not in known:
        raise ConfigError(f"no recipe at {source!r}; give a file or one of {list(known)}")
    return known[source]


def _from_mapping(name: str, values: dict[str, Any]) -> Recipe:
    unknown = sorted(set(values) - {"model", "device", *SECTIONS})
    if unknown:
        raise ConfigError(f"unknown sections {unknown}; known are model, device, {', '.join(SECTIONS)}")
    missing = [key for key in ("model", "device") if not isinstance(values.get(key), str)]
    if missing:
        raise ConfigError(f"a recipe must name {' and '.join(missing)}")
    sections = {}
    for key, kind in SECTIONS.items():
        section = values.get(key) or {}
        if not isinstance(section, dict):
            raise ConfigError(f"{key} must be a mapping, got {shown(section)}")
        try:
            sections[key] = from_dict(kind, section)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from error
    return Recipe(name=name, model=values["model"], device=values["device"], **sections)
