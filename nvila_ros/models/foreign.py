"""Relatives of NVILA that must not load as if they were NVILA: each is refused by name, with what it would take.

They share folders, keys and even shapes with NVILA, so without these checks some load and answer wrongly. Sources: the
pages and configs of the published repositories, as far as they were seen; keys that were not are matched by their stem.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nvila_ros.errors import CheckpointError

OWN_PARTS = ("llm", "vision_tower", "mm_projector")
OWN_CONFIGS = ("text_config", "vision_config", "generation_config")
_PART = re.compile(r"(.*_tower|.*_projector|.*_encoder|.*_extractor|.*_adapter|.*_head)")
_GAZE = re.compile(r"gaz(e|ing)|task_loss_requirement")
_PS3 = re.compile(r"ps3|topdown")
OTHER_TYPES = {
    "llava_topdown_llama": "PS3",
    "cosmos3_edge": "Cosmos 3",
    "qwen2_5_vl": "Qwen2.5-VL, as Cosmos-Reason1 is",
    "qwen3_vl": "Qwen3-VL, as Cosmos-Reason2 is",
    "llama_nemotron_vl": "Nemotron Nano VL",
    "nemotronh_nano_vl_v2": "Nemotron Nano VL",
}
"""Models that NVIDIA published after or beside NVILA, by their config's type."""
_SEES = "its visual tokens are made otherwise, so an answer would be about a picture that it does not see"
_TAKES = {
    "gaze": f"AutoGaze chooses patches before the tower: {_SEES}; it takes that model, its cache over frames and a "
    "tower on parts of a grid",
    "ps3": f"the PS3 tower looks again where the question points: {_SEES}; it takes that tower and its two passes",
    "hd": f"towers of 392 px are those of NVILA-8B-HD-Video, whose AutoGaze chooses patches: {_SEES}; it takes that "
    "model and a tower on parts of a grid",
    "longvila": "a Qwen2 decoder behind a tower of 384 px is LongVILA, which writes visual tokens column by column and "
    "no newline behind a frame; it takes that order, and golden tensors to hold it against",
}


def check_parts(root: Path, top: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that has more parts than NVILA, or is of another family's type.

    Args:
        root: the checkpoint's folder.
        top: its `config.json`.

    Raises:
        CheckpointError: it does; the parts are named.
    """
    kind = str(top.get("model_type") or "")
    family = OTHER_TYPES.get(kind.lower())
    if family:
        text = (
            _TAKES["ps3"] if family == "PS3" else f"a type of {family}, which is no NVILA; it takes a loader of its own"
        )
        raise CheckpointError(f"model_type {kind!r}: {text}")
    if top.get("quantization_config"):
        raise CheckpointError(
            "quantization_config: its weights were quantized by another tool, and nothing here unpacks them; take the "
            "checkpoint that it was made of, and nvila build"
        )
    configs = [key.removesuffix("_cfg") for key, value in top.items() if key.endswith("_cfg") and value]
    configs += [key for key, value in top.items() if key.endswith("_config") and value and key not in OWN_CONFIGS]
    folders = [path.name for path in root.iterdir() if path.is_dir() and _PART.fullmatch(path.name)]
    _refuse_parts({*configs, *folders}, "config or folder")


def check_tensors(keys: Iterable[str]) -> None:
    """Refuse a flat checkpoint with tensors of more parts than NVILA has.

    Raises:
        CheckpointError: it has them; the parts are named.
    """
    _refuse_parts({key.partition(".")[0] for key in keys}, "tensors")


def _refuse_parts(names: set[str], where: str) -> None:
    foreign = sorted(names - set(OWN_PARTS))
    if foreign:
        raise CheckpointError(
            f"NVILA has the parts {list(OWN_PARTS)}, and this checkpoint has {foreign} besides ({where}): what they "
            "see, hear or change would be missing from every answer; it takes an encoder for each"
        )


def check_foreign(top: Mapping[str, Any], vision: Mapping[str, Any], llm: Mapping[str, Any]) -> None:
    """Refuse configs that show a relative of NVILA.

    Args:
        top: `config.json`.
        vision: of the tower.
        llm: of the language model.

    Raises:
        CheckpointError: they do; the reason and what it would take are named.
    """
    for key, value in {**top, **vision}.items():
        if value and _GAZE.search(key):
            raise CheckpointError(f"{key}: {_TAKES['gaze']}")
        if value and _PS3.search(key):
            raise CheckpointError(f"{key}: {_TAKES['ps3']}")
    if _PS3.search(str(vision.get("model_type", ""))):
        raise CheckpointError(f"model_type {vision['model_type']!r} of the tower: {_TAKES['ps3']}")
    if vision.get("image_size") == 392:
        raise CheckpointError(_TAKES["hd"])
    if vision.get("image_size") == 384 and llm.get("model_type") == "qwen2":
        raise CheckpointError(_TAKES["longvila"])
    for key in ("enable_region", "enable_depth"):
        if top.get(key):
            raise CheckpointError(
                f"{key}: SpatialRGPT reads regions and depth besides the picture; it takes its extractor"
            )


def check_gaze(processor: Mapping[str, Any]) -> None:
    """Refuse the config of an image processor that chooses patches.

    Raises:
        CheckpointError: it does.
    """
    for key in processor:
        if _GAZE.search(key):
            raise CheckpointError(f"{key} of the image processor: {_TAKES['gaze']}")
