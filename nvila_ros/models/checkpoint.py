"""Read checkpoints in every layout that NVILA is published in.

- original: a folder with `llm/`, `vision_tower/`, `mm_projector/` (`model_type: llava_llama`)
- preview: the same three folders beside remote code that is not needed here (`model_type: vila`)
- flat: one folder whose tensors carry the part's name (`model_type: nvila` or `nvila_lite`)

Safetensors only: a pickle can run code. Opening reads configs and headers; each tensor is read when it is accessed, so
a caller needs memory for what it keeps and one tensor more. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - lets numpy name bfloat16, in which published checkpoints are stored
import numpy as np
from safetensors import SafetensorError, safe_open

from nvila_ros.errors import CheckpointError
from nvila_ros.files import read_json
from nvila_ros.models.configs import check_preprocessor, complete_flat, read_spec
from nvila_ros.models.finite import FLOAT_DTYPES, check_finite
from nvila_ros.models.foreign import check_parts
from nvila_ros.models.shapes import expected_shapes, find_faults
from nvila_ros.models.spec import ModelSpec

PARTS = ("llm", "vision_tower", "mm_projector")
FLAT_TYPES = ("nvila", "nvila_lite")
INDEX_FILE, WEIGHTS_FILE = "model.safetensors.index.json", "model.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth")
UNFINISHED = "nvila_fetch.json"
"""Lies in a folder as long as a checkpoint is being fetched into it."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies and what it is.

    Attributes:
        file: the weight file.
        name: in that file.
        dtype: in safetensors' spelling, such as BF16.
        shape: of the tensor.
        key: `part.key`, for messages; empty where it is the name.
    """

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    key: str = ""

    def read(self, dtype: Any = None) -> np.ndarray:
        """Return the tensor, cast to `dtype` where one is given.

        Raises:
            CheckpointError: the file is truncated or not safetensors, or a value is NaN or infinite.
        """
        # Opened for each tensor: pages of a mapping that stays open would pile up to the size of the file.
        with _open(self.file) as file:
            array = file.get_tensor(self.name)
        if self.dtype in FLOAT_DTYPES:
            check_finite(f"{self.key or self.name} in {self.file}", array)
        return array if dtype is None else array.astype(dtype, copy=False)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: its spec was checked, its weights are on disk.

    Attributes:
        layout: `original`, `preview` or `flat`.
        config: the top `config.json`.
        tensors: every tensor of the files by `part.key`.
        tokenizer_folder: where the tokenizer's files lie.
    """

    path: Path
    spec: ModelSpec
    layout: str
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    tokenizer_folder: Path

    def weights(self, *parts: str, dtype: Any = np.float32) -> CheckpointWeights:
        """Return the tensors that reach an answer, of the named parts or of all; each is read when it is accessed.

        Raises:
            CheckpointError: a tensor is missing, or its shape or dtype differs from the config.
        """
        faults = find_faults(self.spec, {key: info.shape for key, info in self.tensors.items()})
        if faults:
            raise CheckpointError(f"{self.path}: {faults[0]}")
        faults = find_odd_dtypes(self.spec, self.tensors)
        if faults:
            raise CheckpointError(f"{self.path}: {faults[0]}")
        keys = [key for key in expected_shapes(self.spec) if key.split(".", 1)[0] in (parts or PARTS)]
        return CheckpointWeights({key: self.tensors[key] for key in keys}, dtype)

    def load(self, *parts: str, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """Return `weights`, all read."""
        return dict(self.weights(*parts, dtype=dtype))


class CheckpointWeights(Mapping[str, np.ndarray]):
    """Tensors by `part.key`, read from disk at each access."""

    def __init__(self, tensors: Mapping[str, TensorInfo], dtype: Any) -> None:
        self._tensors, self._dtype = tensors, dtype

    def __getitem__(self, key: str) -> np.ndarray:
        return self._tensors[key].read(self._dtype)

    def __contains__(self, key: object) -> bool:
        return key in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint folder and check its configs.

    Raises:
        CheckpointError: the folder or one of its files is missing, unreadable or of an unknown kind.
    """
    root = Path(path)
    if not (root / "config.json").is_file():
        raise CheckpointError(f"a checkpoint is a folder with config.json, found none in {root}")
    if (root / UNFINISHED).exists():
        raise CheckpointError(f"{root} was not fetched to its end; run the same nvila fetch again, which goes on there")
    top = read_object(root / "config.json")
    layout = find_layout(root, top)
    if layout == "flat":
        tensors = _read_folder(root, "")
        top = complete_flat(root.name, top, {key: info.shape for key, info in tensors.items()})
    else:
        tensors = {key: info for part in PARTS for key, info in _read_folder(root / part, f"{part}.").items()}
    spec = read_spec(root.name, top, **part_configs(root, top, layout))
    check_processor(root, layout, spec)
    return Checkpoint(
        path=root,
        spec=spec,
        layout=layout,
        config=top,
        tensors=tensors,
        tokenizer_folder=root if layout == "flat" else root / "llm",
    )


def check_processor(root: Path, layout: str, spec: ModelSpec) -> None:
    """Check the config of the tower's image processor, if there is one, as `check_preprocessor` does.

    Raises:
        CheckpointError: a value that reaches the pixels differs.
    """
    processor = (root if layout == "flat" else root / "vision_tower") / "preprocessor_config.json"
    if processor.is_file():
        check_preprocessor(read_object(processor), spec.vision.image_px)


def find_odd_dtypes(spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return what is wrong with the dtypes of tensors that reach an answer."""
    odd = sorted({tensors[key].dtype for key in expected_shapes(spec) if key in tensors} - set(FLOAT_DTYPES))
    return [f"weights must be of {list(FLOAT_DTYPES)}, got {odd} as well; convert them"] if odd else []


def find_layout(root: Path, top: Mapping[str, Any]) -> str:
    """Return `original`, `preview` or `flat`.

    Raises:
        CheckpointError: it is none of them, or has parts that NVILA has not.
    """
    check_parts(root, top)
    kind = top.get("model_type")
    if kind in FLAT_TYPES or ("text_config" in top and "vision_config" in top):
        lacking = [key for key in ("text_config", "vision_config") if not isinstance(top.get(key), dict)]
        if lacking:
            raise CheckpointError(f"{root / 'config.json'} of type {kind!r} lacks {lacking}")
        return "flat"
    if all((root / part).is_dir() for part in PARTS):
        return "preview" if kind == "vila" else "original"
    raise CheckpointError(
        f"{root} is of no known layout: it has neither the folders {list(PARTS)} nor a config of type "
        f"{' or '.join(FLAT_TYPES)} (model_type is {kind!r})"
    )


def part_configs(root: Path, top: Mapping[str, Any], layout: str) -> dict[str, Mapping[str, Any]]:
    """Return the configs of the parts, by the names that `read_spec` takes them under.

    Raises:
        CheckpointError: one is not readable.
    """
    if layout == "flat":
        return {"vision": top["vision_config"], "llm": top["text_config"], "projector": top["mm_projector_cfg"]}
    own = {part: root / part / "config.json" for part in PARTS}
    found = {part: read_object(path) if path.is_file() else top.get(f"{part}_cfg") or {} for part, path in own.items()}
    return {"vision": found["vision_tower"], "llm": found["llm"], "projector": found["mm_projector"]}


def weight_names(folder: Path) -> list[str]:
    """Return the names of a folder's weight files, existing or not.

    Raises:
        CheckpointError: the index is not readable or names no file.
    """
    index = folder / INDEX_FILE
    if not index.is_file():
        return [WEIGHTS_FILE]
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} names no weight files; copy it anew")
    return sorted({Path(str(name)).name for name in weight_map.values()})  # an index may not point out of its folder


def read_header(path: Path, prefix: str) -> dict[str, TensorInfo]:
    """Return every tensor of a weight file by its key, from the header alone.

    Raises:
        CheckpointError: the file is truncated or not safetensors.
    """
    tensors = {}
    with _open(path) as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            part = file.get_slice(name)
            tensors[prefix + name] = TensorInfo(path, name, part.get_dtype(), tuple(part.get_shape()), prefix + name)
    return tensors


def find_pickles(folder: Path) -> list[str]:
    """Return the names of a folder's pickled weights, which are never read."""
    return sorted(path.name for kind in PICKLES for path in folder.glob(kind))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is not readable, or is no JSON object.
    """
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable as JSON: {error}; copy it anew") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(value).__name__}; copy it anew")
    return value


def _read_folder(folder: Path, prefix: str) -> dict[str, TensorInfo]:
    paths = [folder / name for name in weight_names(folder)]
    for path in paths:
        if not path.is_file():
            pickles = find_pickles(folder)
            hint = f"; found {pickles}, but pickles can run code: convert to safetensors" if pickles else ""
            raise CheckpointError(f"weights are missing: {path}{hint}")
    return {key: info for path in paths for key, info in read_header(path, prefix).items()}


def _open(path: Path) -> Any:
    try:
        return safe_open(path, "np")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or not safetensors ({error}); copy it anew") from error
