"""The files of a build: quantized weights, the tokenizer and a manifest, which is written last.

The manifest has the size and SHA-256 of every file, so an unfinished or changed folder is refused before anything of it
is used. Weights are in safetensors files, linear maps inputs first: four-bit values as `KEY.values`, two to a byte,
eight-bit values as int8, with `KEY.scale` and, where the input's scale is fixed, `KEY.input_scale`; all other tensors
have their own key.

These files run on any machine. Plans that were compiled from them for one machine have digests of their own, which the
TensorRT engine checks when it loads them: a damaged plan leaves the rest of the build usable.
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
_END_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Build:
    """An opened build whose files were all checked.

    Attributes:
        precision: such as `w8a8+w4a16`.
        recipe: the recipe it was made by, as plain values.
        source: fingerprint of the checkpoint it was made of; empty if the manifest has none.
        tensors: every tensor of its files.
        weights_sha256: digest of all its weights.
        plans: compiled plans, in the form of `runtime/tensorrt/plans.py`.
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
        """Return the weights by `part.key`; each is read when it is accessed."""
        return StoredWeights(self.tensors)

    def map_tensor(self, key: str) -> np.ndarray:
        """Return a read-only tensor whose rows are read from disk when they are accessed.

        Raises:
            CheckpointError: it is quantized, or a value is NaN or infinite.
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
    """Weights by `part.key`, read from disk at each access."""

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
    """Return a weight as the tensors of a file."""
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
    """Open a build: check its manifest, every file, and its tensors against its spec.

    Raises:
        CheckpointError: it is not finished, was changed since, is of another format, or its tensors are not those of
            its spec.
    """
    manifest = _read_manifest(folder)
    try:
        for name, digest in manifest["files"].items():
            check_file(folder, name, digest, REBUILD)
        spec = spec_from_dict(manifest["spec"])
        names = [name for name in manifest["files"] if name.endswith(".safetensors")]
        tensors = {key: info for name in names for key, info in read_header(folder / name, "").items()}
        faults = find_build_faults(spec, tensors)
        if faults:
            raise CheckpointError(f"{folder} is not a whole model: {faults[0]}; {REBUILD}")
        all_weights = hashlib.sha256(
            "".join(f"{name} {manifest['files'][name]['sha256']}\n" for name in sorted(names)).encode()
        )
        return Build(
            path=folder,
            spec=spec,
            precision=manifest["precision"],
            recipe=manifest["recipe"],
            source=manifest.get("source", ""),
            tensors=tensors,
            weights_sha256=all_weights.hexdigest(),
            plans=tuple(manifest.get("plans", ())),
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
    """Write the manifest of a folder, which makes it a build.

    Args:
        folder: with all files of the build.
        spec: of the model.
        precision: such as `w8a8+w4a16`.
        recipe: as plain values.
        source: `fingerprint` of the checkpoint.
        leave_out: names of files that are no part of the build.
    """
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    manifest = {
        "format": FORMAT,
        "source": source,
        "precision": precision,
        "recipe": recipe,
        "spec": dataclasses.asdict(spec),
        "files": {name: digest_file(folder / name) for name in names if name not in {MANIFEST, *leave_out}},
    }
    _write(folder, manifest)


def rewrite_plans(folder: Path, recipe: Mapping[str, Any], plans: Sequence[Mapping[str, Any]]) -> None:
    """Replace the plans in a build's manifest, and the recipe that they were compiled by."""
    _write(folder, _read_manifest(folder) | {"recipe": recipe, "plans": list(plans)})


def _read_manifest(folder: Path) -> dict[str, Any]:
    """Return a manifest of this format whose digest is right; `plans` have digests of their own.

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


def _write(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest in one step, with its digest."""
    write_json(folder / MANIFEST, {**manifest, "sha256": manifest_digest(manifest)})


def fingerprint(checkpoint: Checkpoint) -> str:
    """Return a digest of a checkpoint: its config, and of each weight file the header and both ends of each tensor.

    Training changes a tensor everywhere, so its ends identify it; reading all of a large model would take minutes.
    """
    digest = hashlib.sha256(json.dumps(dict(checkpoint.config), sort_keys=True).encode())
    for path in sorted({info.file for info in checkpoint.tensors.values()}):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            header = file.read(int.from_bytes(file.read(8), "little"))
            digest.update(header)
            start = file.tell()
            entries = json.loads(header)
            names = entries.keys() - {"__metadata__"}
            for first, end in sorted(entries[name]["data_offsets"] for name in names):
                for place in {first, max(first, end - _END_BYTES)}:
                    file.seek(start + place)
                    digest.update(file.read(min(_END_BYTES, end - place)))
    return digest.hexdigest()


def digest_file(path: Path) -> dict[str, Any]:
    """Return the size and SHA-256 of a file, as a manifest has them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def spec_from_dict(values: Mapping[str, Any]) -> ModelSpec:
    """Return the spec of its plain values, as JSON has them.

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
    parts: dict[str, Any] = {name: kind(**values[name]) for name, kind in kinds.items()}
    lists = {"scales": tuple(values["scales"]), "video_pools": tuple(tuple(pool) for pool in values["video_pools"])}
    return ModelSpec(**{**values, **parts, **lists})


def check_file(folder: Path, name: str, digest: Mapping[str, Any], how: str) -> None:
    """Compare a file with its `digest_file` in the manifest.

    Raises:
        CheckpointError: it is missing or differs; `how` says what to do.
    """
    path = folder / name
    if folder.resolve() not in path.resolve().parents:
        raise CheckpointError(f"{folder / MANIFEST} names a file outside of its folder, {name!r}; {how}")
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; {how}")
    # The size first: a truncated file need not be read.
    if path.stat().st_size != digest["bytes"] or digest_file(path) != dict(digest):
        raise CheckpointError(f"{path} is not the file that was built: it was truncated or changed; {how}")
