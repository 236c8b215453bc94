"""A checkpoint that cannot be used is refused by name, before anything is allocated for it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvila_ros.errors import CheckpointError
from nvila_ros.models.checkpoint import expected_shapes, open_checkpoint
from tests.golden_cases import CHECKPOINT


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "ckpt"))


def test_sharded_bf16_checkpoint_loads_every_live_tensor_as_fp32() -> None:
    checkpoint = open_checkpoint(CHECKPOINT)

    weights = checkpoint.load()

    assert {key: array.shape for key, array in weights.items()} == expected_shapes(checkpoint.spec)
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json, found none in .*nowhere"):
        open_checkpoint(tmp_path / "nowhere")


def test_truncated_weights_are_named(copy: Path) -> None:
    path = copy / "mm_projector" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match=r"mm_projector.*truncated"):
        open_checkpoint(copy).load()


def test_missing_shard_is_named(copy: Path) -> None:
    (copy / "llm" / "model-00002-of-00002.safetensors").unlink()

    with pytest.raises(CheckpointError, match="model-00002-of-00002"):
        open_checkpoint(copy)


def test_pickled_weights_are_refused_with_the_reason(copy: Path) -> None:
    (copy / "vision_tower" / "model.safetensors").rename(copy / "vision_tower" / "pytorch_model.bin")

    with pytest.raises(CheckpointError, match="pickles can run code"):
        open_checkpoint(copy)


def test_wrong_shape_is_named(copy: Path) -> None:
    path = copy / "mm_projector" / "model.safetensors"
    tensors = load_file(path)
    tensors["layers.1.bias"] = tensors["layers.1.bias"][:-1].copy()
    save_file(tensors, path)

    with pytest.raises(CheckpointError, match=r"mm_projector\.layers\.1\.bias must be \(576,\)"):
        open_checkpoint(copy).load()


def test_missing_tensor_is_named(copy: Path) -> None:
    path = copy / "mm_projector" / "model.safetensors"
    tensors = load_file(path)
    del tensors["layers.2.weight"]
    save_file(tensors, path)

    with pytest.raises(CheckpointError, match=r"lacks 1 tensors, first mm_projector\.layers\.2\.weight"):
        open_checkpoint(copy).load()


@pytest.mark.parametrize(
    ("file", "key", "value", "rule"),
    [
        ("config.json", "dynamic_s2", True, r"implemented are \['resize', 'dynamic'\] without s2"),
        ("config.json", "image_aspect_ratio", "dynamic_s2", "cuts images by 'dynamic_s2'"),
        (
            "config.json",
            "video_encoder",
            '{"_target_": "llava.TSPVideoEncoder"}',
            r"video_encoder \{.*TSPVideoEncoder",
        ),
        ("mm_projector/config.json", "mm_projector_type", "resampler", "known are .*mlp_downsample"),
        ("llm/config.json", "model_type", "llama", "must be of type qwen2"),
        ("llm/config.json", "num_key_value_heads", 3, "multiple of kv heads, got 4 and 3"),
        ("vision_tower/config.json", "patch_size", 13, "image size must be a multiple of patch size"),
    ],
)
def test_config_outside_the_family_is_refused_by_rule(
    copy: Path, file: str, key: str, value: object, rule: str
) -> None:
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    with pytest.raises(CheckpointError, match=rule):
        open_checkpoint(copy)


def test_lacking_config_key_is_named(copy: Path) -> None:
    path = copy / "llm" / "config.json"
    config = json.loads(path.read_text())
    del config["num_hidden_layers"]
    path.write_text(json.dumps(config))

    with pytest.raises(CheckpointError, match="num_hidden_layers"):
        open_checkpoint(copy)
