"""Read all files of a checkpoint and collect what is wrong with them, instead of stopping at the first fault.

In: a folder with `config.json`. Out: an `Inspection`. `models.checkpoint.open_checkpoint` reads the same files and
refuses the first fault; here a checkpoint with a truncated shard still shows its spec. Weights are read one tensor at
a time.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nvila_ros.errors import CheckpointError
from nvila_ros.models.checkpoint import (
    PARTS,
    TensorInfo,
    check_processor,
    find_layout,
    find_odd_dtypes,
    find_pickles,
    part_configs,
    read_header,
    read_object,
    weight_names,
)
from nvila_ros.models.configs import Config, complete_flat, read_spec
from nvila_ros.models.shapes import expected_shapes, find_faults
from nvila_ros.models.spec import ModelSpec
from nvila_ros.models.variants import dead_shapes
from nvila_ros.prompt.tokenizer import ChatTokenizer

OnRead = Callable[[int, int], None]


@dataclass(slots=True)
class Inspection:
    """What was found in a checkpoint.

    Attributes:
        layout: `original`, `preview` or `flat`; empty if it is none of them.
        spec: None where the configs do not give one.
        tensors: those of the files that can be read, by `part.key`.
        tokenizer: None where its files do not give one.
        faults: what keeps the checkpoint from working, each a sentence with its remedy.
        remarks: what is unusual and harmless.
    """

    path: Path
    layout: str = ""
    spec: ModelSpec | None = None
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    tokenizer: ChatTokenizer | None = None
    faults: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def inspect_folder(root: Path, on_read: OnRead | None = None) -> Inspection:
    """Read every file of a checkpoint.

    Args:
        root: the checkpoint's folder.
        on_read: called while weights are read, with the bytes read and in total; None reads configs and headers alone.

    Raises:
        CheckpointError: the folder holds no checkpoint at all.
    """
    if not (root / "config.json").is_file():
        raise CheckpointError(f"a checkpoint is a folder with config.json, found none in {root}")
    found = Inspection(root)
    top: Config | None = None
    with _collect(found.faults):
        top = read_object(root / "config.json")
    with _collect(found.faults):
        found.layout = find_layout(root, top or {})
    is_flat = found.layout == "flat"
    before = len(found.faults)
    folders = [(root, "")] if is_flat else [(root / part, f"{part}.") for part in PARTS if (root / part).is_dir()]
    for folder, prefix in folders:
        found.tensors |= _read_headers(folder, prefix, found)
    has_all_files = bool(found.layout) and len(found.faults) == before
    if top is not None:
        found.spec = _read_spec(found, top, has_all_files)
    if found.spec is not None:
        _check_tensors(found, found.spec, has_all_files)
        with _collect(found.faults):
            check_processor(root, found.layout, found.spec)
        if is_flat and "image_aspect_ratio" not in (top or {}):
            found.remarks.append(
                "a flat config names neither image mode nor pooling; they are those of the published variant with "
                "such a projector"
            )
    with _collect(found.faults):
        found.tokenizer = ChatTokenizer.from_folder(root if is_flat else root / "llm")
    if found.spec is not None and on_read is not None:
        _read_weights(found, found.spec, on_read)
    if found.spec is not None and found.tokenizer is not None:
        _check_tokens(found, found.spec, found.tokenizer, top or {})
    return found


def tensor_bytes(info: TensorInfo) -> int:
    """Return the bytes that a tensor takes in its file; the dtype's name has the bits of a value."""
    bits = re.search(r"\d+", info.dtype)
    return math.prod(info.shape) * (int(bits[0]) if bits else 8) // 8


@contextlib.contextmanager
def _collect(faults: list[str]) -> Iterator[None]:
    """Collect a fault instead of stopping at it."""
    try:
        yield
    except CheckpointError as error:
        faults.append(str(error))


def _read_spec(found: Inspection, top: Config, has_all_files: bool) -> ModelSpec | None:
    shapes = {key: info.shape for key, info in found.tensors.items()}
    is_flat = found.layout == "flat"
    if is_flat and not has_all_files and "mm_projector.layers.1.weight" not in shapes:
        return None  # the projector's kind is read from its tensors, which are a fault already
    spec = None
    with _collect(found.faults):
        top = complete_flat(found.path.name, top, shapes) if is_flat else top
        spec = read_spec(found.path.name, top, **part_configs(found.path, top, found.layout))
    return spec


def _read_headers(folder: Path, prefix: str, found: Inspection) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for path in _weight_files(folder, found):
        with _collect(found.faults):
            tensors |= read_header(path, prefix)
    return tensors


def _weight_files(folder: Path, found: Inspection) -> list[Path]:
    """Return the weight files that are there."""
    names: list[str] = []
    with _collect(found.faults):
        names = weight_names(folder)
    missing = [name for name in names if not (folder / name).is_file()]
    pickles = find_pickles(folder)
    if missing:
        remedy = f"convert {pickles} to safetensors, since pickles can run code" if pickles else "copy them anew"
        found.faults.append(
            f"weights are missing: {len(missing)} of {len(names)} files in {folder}, {missing}; {remedy}"
        )
    elif pickles:
        found.remarks.append(f"{pickles} in {folder} are never read, since pickles can run code")
    return [folder / name for name in names if name not in missing]


def _check_tensors(found: Inspection, spec: ModelSpec, has_all_files: bool) -> None:
    wanted = expected_shapes(spec)
    shapes = {key: info.shape for key, info in found.tensors.items()}
    # Tensors of a missing or broken file are covered by the fault of the file.
    found.faults += find_faults(spec, shapes if has_all_files else wanted | shapes)
    found.faults += find_odd_dtypes(spec, found.tensors)
    dtypes = sorted({info.dtype for key, info in found.tensors.items() if key in wanted})
    if len(dtypes) > 1:
        found.remarks.append(f"the weights are of several dtypes: {', '.join(dtypes)}")
    unknown = sorted(shapes.keys() - wanted.keys() - dead_shapes(spec).keys())
    if unknown:
        found.remarks.append(
            f"{len(unknown)} tensors in the files belong to no part and are not read, first {unknown[0]}"
        )
    if spec.num_video_frames % spec.frames_per_group:
        found.remarks.append(
            f"clips are pooled in groups of {spec.frames_per_group} frames, so of the default of "
            f"{spec.num_video_frames} the oldest are dropped"
        )


def _read_weights(found: Inspection, spec: ModelSpec, on_read: OnRead) -> None:
    """Read the tensors that reach an answer, each of which may hold NaN or infinity."""
    live = [found.tensors[key] for key in expected_shapes(spec) if key in found.tensors]
    sizes = [tensor_bytes(info) for info in live]
    for info, end in zip(live, itertools.accumulate(sizes), strict=True):
        with _collect(found.faults):
            info.read()
        on_read(end, sum(sizes))


def _check_tokens(found: Inspection, spec: ModelSpec, tokenizer: ChatTokenizer, top: Config) -> None:
    num_rows = spec.decoder.vocab_size
    for name in tokenizer.template.tokens:
        idx = tokenizer.named_ids[name]
        if idx >= num_rows:
            found.faults.append(
                f"{name} must be a row of the embedding table, got id {idx} and {num_rows} rows; "
                "use tokenizer and weights of one revision"
            )
    for key, idx in (("image_token_id", tokenizer.image_id), ("video_token_id", tokenizer.video_id)):
        if top.get(key) not in (None, idx):
            found.faults.append(
                f"{key} is {top[key]} in config.json but {idx} by the tokenizer; use the files of one revision"
            )
