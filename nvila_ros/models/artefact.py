"""What a build leaves: a folder with quantized weights, the tokenizer and a manifest, which is written last.

The manifest names every file with its size and digest, so a folder that a build did not finish, or that was changed
since, is refused before anything of it is used. Weights lie in safetensors files, linear maps inputs first: four-bit
values as `KEY.values`, two to a byte, eight-bit ones as int8, with `KEY.scale` and, where the input's scale is fixed,
`KEY.input_scale`; all else under its own key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.errors import CheckpointError
from nvila_ros.models.checkpoint import TensorInfo, read_header, read_object
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight, pack_nibbles, unpack_nibbles
from nvila_ros.models.spec import DecoderSpec, ModelSpec, ProjectorSpec, VisionSpec, Wrap

MANIFEST = "manifest.json"
FORMAT = 1
REBUILD = "build it again with nvila build"
_CHUNK = 1 << 24


@dataclass(frozen=True, slots=True)
class Artefact:
    """An opened build, every file of which was checked.

    Attributes:
        precision: such as `w8a8+w4a16`.
        recipe: the recipe that it was built from, as plain values.
        tensors: every tensor of its files.
    """

    path: Path
    spec: ModelSpec
    precision: str
    recipe: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files lie."""
        return self.path / "tokenizer"

    def weights(self) -> StoredWeights:
        """Return the weights by `part.key`, each read when it is asked for."""
        return StoredWeights(self.tensors)


class StoredWeights(Mapping[str, Weight]):
    """Weights by `part.key`, read from disk anew each time one is asked for."""

    def __init__(self, tensors: Mapping[str, TensorInfo]) -> None:
        self._tensors = tensors
        sides = (".scale", ".input_scale")
        self._keys = [key.removesuffix(".values") for key in tensors if not key.endswith(sides)]

    def __getitem__(self, key: str) -> Weight:
        if key in self._tensors:
            return self._tensors[key].read()
        values, scale = self._tensors[f"{key}.values"].read(), self._tensors[f"{key}.scale"].read()
        if values.dtype == np.uint8:
            return Int4Weight(unpack_nibbles(values), scale)
        fixed = self._tensors.get(f"{key}.input_scale")
        return Int8Weight(values, scale, None if fixed is None else float(fixed.read()[0]))

    def __contains__(self, key: object) -> bool:
        return key in self._tensors or f"{key}.values" in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


def to_tensors(key: str, weight: Weight) -> dict[str, np.ndarray]:
    """Return a weight as the tensors that a file holds of it."""
    if isinstance(weight, np.ndarray):
        return {key: np.ascontiguousarray(weight)}
    if isinstance(weight, Int4Weight):
        return {f"{key}.values": pack_nibbles(weight.values_KN), f"{key}.scale": weight.scale_GN}
    tensors = {f"{key}.values": weight.values_KN, f"{key}.scale": weight.scale_N}
    if weight.input_scale is not None:
        tensors[f"{key}.input_scale"] = np.array([weight.input_scale], np.float32)
    return tensors


def is_artefact(folder: Path) -> bool:
    """Whether a folder claims to be a build."""
    return (folder / MANIFEST).is_file()


def open_artefact(folder: Path) -> Artefact:
    """Open a build and check every file of it.

    Raises:
        CheckpointError: it is not finished, was changed since, or is of another format.
    """
    told = read_object(folder / MANIFEST)
    if told.get("format") != FORMAT:
        raise CheckpointError(f"{folder} is a build of format {told.get('format')!r}, this is {FORMAT}; {REBUILD}")
    try:
        for name, seal in told["files"].items():
            _check_file(folder, name, seal)
        spec = spec_from_dict(told["spec"])
        names = [name for name in told["files"] if name.endswith(".safetensors")]
        tensors = {key: info for name in names for key, info in read_header(folder / name, "").items()}
        return Artefact(folder, spec, told["precision"], told["recipe"], tensors)
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is not a build's manifest ({error!r}); {REBUILD}") from error


def write_manifest(folder: Path, spec: ModelSpec, precision: str, recipe: Mapping[str, Any]) -> None:
    """Seal every file of a folder; from here on it is a build."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    told = {
        "format": FORMAT,
        "precision": precision,
        "recipe": recipe,
        "spec": dataclasses.asdict(spec),
        "files": {name: seal_file(folder / name) for name in names if name != MANIFEST},
    }
    staged = folder / f".{MANIFEST}.part"
    staged.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    os.replace(staged, folder / MANIFEST)


def seal_file(path: Path) -> dict[str, Any]:
    """Return the size and digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def spec_from_dict(told: Mapping[str, Any]) -> ModelSpec:
    """Return the spec of its plain values, as JSON gives them back.

    Raises:
        CheckpointError: a value is outside its rule.
        KeyError: one is missing.
        TypeError: one is unknown.
    """
    kinds = {
        "vision": VisionSpec,
        "projector": ProjectorSpec,
        "decoder": DecoderSpec,
        "image_wrap": Wrap,
        "video_wrap": Wrap,
    }
    parts: dict[str, Any] = {name: kind(**told[name]) for name, kind in kinds.items()}
    lists = {"scales": tuple(told["scales"]), "video_pools": tuple(tuple(pool) for pool in told["video_pools"])}
    return ModelSpec(**{**told, **parts, **lists})


def _check_file(folder: Path, name: str, seal: Mapping[str, Any]) -> None:
    path = folder / name
    if folder.resolve() not in path.resolve().parents:
        raise CheckpointError(f"{folder / MANIFEST} names a file outside of its folder, {name!r}; {REBUILD}")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {REBUILD}")
    if seal_file(path) != dict(seal):
        raise CheckpointError(f"{path} is not the file that was built: it was truncated or changed; {REBUILD}")
