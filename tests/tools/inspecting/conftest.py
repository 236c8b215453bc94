"""A small checkpoint in both layouts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from tests.golden_cases import CHECKPOINT
from tests.tools.inspecting.checkpoints import read_json, write_json

FLAT_CONFIGS = {"text": "llm", "vision": "vision_tower"}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "ckpt"))


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """The golden checkpoint in the flat layout, with its tokenizer."""
    root = tmp_path / "flat"
    root.mkdir()
    tensors = {}
    for part in ("llm", "vision_tower", "mm_projector"):
        for file in (CHECKPOINT / part).glob("*.safetensors"):
            tensors |= {f"{part}.{key}": array for key, array in load_file(file).items()}
    save_file(tensors, root / "model.safetensors")
    configs = {f"{name}_config": read_json(CHECKPOINT / part / "config.json") for name, part in FLAT_CONFIGS.items()}
    write_json(root / "config.json", {"model_type": "nvila_lite", "image_token_id": 290, **configs})
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        shutil.copy(CHECKPOINT / "llm" / name, root)
    return root
