"""The embedded model as a build, rounded to nearest: what `nvila build` writes, without calibration."""

import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from nvila_ros.models.build import to_tensors, write_manifest
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.quantized import Weight
from tests.export.random_models import round_int4, round_int8

CHECKPOINT = open_checkpoint(Path(__file__).parents[2] / "checkpoints" / "nvila-tiny")
INPUT_SCALE = 0.05


def write_rounded_build(folder: Path, is_float: bool = False) -> Path:
    """Write a tower in eight bits and a decoder in four with their head, or all in float16; return the folder."""
    floats = CHECKPOINT.load()
    weights: dict[str, Weight] = {key: _halve(array) for key, array in floats.items()}
    if not is_float:
        maps = {key: array for key, array in floats.items() if array.ndim == 2}
        weights |= {key: round_int8(array, INPUT_SCALE) for key, array in maps.items() if "encoder.layers" in key}
        weights |= {key: round_int4(maps[key], 128) for key in maps if key.startswith("llm.") and "_proj" in key}
        weights["llm.lm_head.weight"] = round_int4(floats["llm.model.embed_tokens.weight"], 128)
    folder.mkdir(parents=True)
    for part in ("llm", "vision_tower", "mm_projector"):
        mine = (to_tensors(key, weight) for key, weight in weights.items() if key.split(".")[0] == part)
        save_file(
            {name: array for tensors in mine for name, array in tensors.items()}, folder / f"{part}-1.safetensors"
        )
    shutil.copytree(CHECKPOINT.tokenizer_folder, folder / "tokenizer", ignore=lambda _, names: _weights(names))
    write_manifest(folder, CHECKPOINT.spec, "fp16" if is_float else "w8a8+w4a16", {"name": "rounded"}, "")
    return folder


def _halve(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float16) if array.ndim > 1 else array


def _weights(names: list[str]) -> list[str]:
    return [name for name in names if name.endswith(("safetensors", "index.json")) or name == "config.json"]
