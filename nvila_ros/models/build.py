"""What a build leaves: a folder with quantized weights, the tokenizer and a manifest, which is written last.

The manifest names every file with its size and digest, so a folder that a build did not finish, or that was changed
since, is refused before anything of it is used. Weights lie in safetensors files, linear maps inputs first: four-bit
values as `KEY.values`, two to a byte, eight-bit ones as int8, with `KEY.scale` and, where the input's scale is fixed,
`KEY.input_scale`; all else under its own key.

That much runs anywhere. Plans that were compiled of it for one machine lie beside and have seals of their own, which
only who loads them checks: one that is damaged or stale makes the rest of the build no worse.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.errors import CheckpointError
from nvila_ros.files import write_json
from nvila_ros.models.build_shapes import find_build_faults
from nvila_ros.models.checkpoint import Checkpoint, TensorInfo, read_header, read_object
from nvila_ros.models.finite import check_finite
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight, pack_nibbles, unpack_nibbles
from nvila_ros.models.spec import DecoderSpec, ModelSpec, ProjectorSpec, VisionSpec, Wrap

MANIFEST = "manifest.json"
FORMAT = 2
REBUILD = "build it again with nvila build"
_CHUNK = 1 << 24
_SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Build:
    """An opened build, every file of which was checked.

    Attributes:
        precision: such as `w8a8+w4a16`.
        recipe: the recipe that it was built from, as plain values.
        source: fingerprint of the checkpoint that it was built from; empty if it does not tell.
        tensors: every tensor of its files.
        weights_sha256: digest of all its weights.
        plans: what was compiled of it, as `runtime/tensorrt/plans.py` tells them.
    """

    path: Path
    spec: ModelSpec
    precision: str
    recipe: Mapping[str, Any]
    source: str
    tensors: Mapping[str, TensorInfo]
    weights_sha256: str
    plans: tuple[Mapping[str, Any], ...] = ()

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer's files lie."""
        return self.path / "tokenizer"

    def weights(self) -> StoredWeights:
        """Return the weights by `part.key`, each read when it is asked for."""
        return StoredWeights(self.tensors)

    def map_tensor(self, key: str) -> np.ndarray:
        """Return a tensor whose rows are read from disk as they are asked for; it cannot be written to.

        Raises:
            CheckpointError: it is held quantized, or a value is NaN or infinite.
        """
        info = self.tensors.get(key)
        if info is None:
            raise CheckpointError(f"{self.path} holds no plain {key}; {REBUILD}")
        with info.file.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            start, _ = json.loads(file.read(length))[info.name]["data_offsets"]
        dtype = {"F16": np.float16, "F32": np.float32}[info.dtype]
        tensor = np.memmap(info.file, dtype, "r", 8 + length + start, info.shape)
        check_finite(f"{key} in {info.file}", tensor)
        return tensor


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


def is_build(folder: Path) -> bool:
    """Whether a folder claims to be a build."""
    return (folder / MANIFEST).is_file()


def open_build(folder: Path) -> Build:
    """Open a build and check its manifest, every file of it, and its tensors against its spec.

    Raises:
        CheckpointError: it is not finished, was changed since, is of another format, or its tensors are not those of
            its spec.
    """
    told = _read_manifest(folder)
    try:
        for name, seal in told["files"].items():
            check_file(folder, name, seal, REBUILD)
        spec = spec_from_dict(told["spec"])
        names = [name for name in told["files"] if name.endswith(".safetensors")]
        tensors = {key: info for name in names for key, info in read_header(folder / name, "").items()}
        faults = find_build_faults(spec, tensors)
        if faults:
            raise CheckpointError(f"{folder} is not a whole model: {faults[0]}; {REBUILD}")
        digest = hashlib.sha256("".join(f"{name} {told['files'][name]['sha256']}\n" for name in sorted(names)).encode())
        return Build(
            path=folder,
            spec=spec,
            precision=told["precision"],
            recipe=told["recipe"],
            source=told.get("source", ""),
            tensors=tensors,
            weights_sha256=digest.hexdigest(),
            plans=tuple(told.get("plans", ())),
        )
    except (AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / MANIFEST} is not a build's manifest ({error!r}); {REBUILD}") from error


def write_manifest(
    folder: Path,
    spec: ModelSpec,
    precision: str,
    recipe: Mapping[str, Any],
    source: str,
    leave_out: Collection[str] = (),
) -> None:
    """Seal the files of a folder but some; from here on it is a build. `source` is its checkpoint's `fingerprint`."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    told = {
        "format": FORMAT,
        "source": source,
        "precision": precision,
        "recipe": recipe,
        "spec": dataclasses.asdict(spec),
        "files": {name: seal_file(folder / name) for name in names if name not in {MANIFEST, *leave_out}},
    }
    _write(folder, told)


def rewrite_plans(folder: Path, recipe: Mapping[str, Any], plans: Sequence[Mapping[str, Any]]) -> None:
    """Let a sealed build tell of these plans and no others, and of the recipe that they were compiled by."""
    _write(folder, _read_manifest(folder) | {"recipe": recipe, "plans": list(plans)})


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return a manifest of this format that is as it was written; only `plans`, each with a digest, may differ.

    Raises:
        CheckpointError: it is not readable, is of another format or was edited.
    """
    manifest = read_object(folder / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CheckpointError(f"{folder} is a build of format {manifest.get('format')!r}, this is {FORMAT}; {REBUILD}")
    if manifest.get("sha256") != manifest_digest(manifest):
        raise CheckpointError(f"{folder / MANIFEST} was edited since the build wrote it; {REBUILD}")
    return manifest


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """Return the digest of all that a manifest holds but the plans, which have their own, and the digest itself."""
    covered = {key: value for key, value in manifest.items() if key not in ("sha256", "plans")}
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, told: Mapping[str, Any]) -> None:
    """Replace the manifest in one step, with its digest."""
    write_json(folder / MANIFEST, {**told, "sha256": manifest_digest(told)})


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a digest of a checkpoint: its config, and of each weight file the header and each tensor's head and tail.

    Whatever learns changes a tensor all over, so its ends tell; reading all of a large model would take minutes.
    """
    digest = hashlib.sha256(json.dumps(dict(checkpoint.config), sort_keys=True).encode())
    for path in sorted({info.file for info in checkpoint.tensors.values()}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            digest.update(header)
            start = file.tell()
            told = json.loads(header)
            for first, end in sorted(told[name]["data_offsets"] for name in told.keys() - {"__metadata__"}):
                for place in {first, max(first, end - _SAMPLE_BYTES)}:
                    file.seek(start + place)
                    digest.update(file.read(min(_SAMPLE_BYTES, end - place)))
    return digest.hexdigest()


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


def check_file(folder: Path, name: str, seal: Mapping[str, Any], how: str) -> None:
    """Check a file against what `seal_file` gave of it.

    Raises:
        CheckpointError: it is not there or not the same; `how` says what to do.
    """
    path = folder / name
    if folder.resolve() not in path.resolve().parents:
        raise CheckpointError(f"{folder / MANIFEST} names a file outside of its folder, {name!r}; {how}")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {how}")
    # The size first: a file that was cut off need not be read.
    if path.stat().st_size != seal["bytes"] or seal_file(path) != dict(seal):
        raise CheckpointError(f"{path} is not the file that was built: it was truncated or changed; {how}")
