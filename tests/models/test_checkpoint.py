"""A checkpoint that cannot be used is refused by name, before anything is allocated for it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvila_ros.errors import CheckpointError
from nvila_ros.models.checkpoint import TensorInfo, open_checkpoint
from nvila_ros.models.shapes import expected_shapes
from nvila_ros.models.spec import ModelSpec
from tests.golden_cases import CHECKPOINT, GOLDEN


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

    with pytest.raises(CheckpointError, match=r"1 tensors are missing, first mm_projector\.layers\.2\.weight"):
        open_checkpoint(copy).load()


@pytest.mark.parametrize(
    ("file", "key", "value", "rule"),
    [
        (
            "config.json",
            "image_aspect_ratio",
            "pad",
            r"tiling kind .*'pad'; known are \['resize', 'dynamic', 'dynamic_s2",
        ),
        ("config.json", "dynamic_s2", True, "dynamic_s2 and image_aspect_ratio must agree, got True and 'dynamic'"),
        ("config.json", "image_aspect_ratio", "dynamic_s2", "must agree, got False and 'dynamic_s2'"),
        ("config.json", "mm_hidden_size", 128, "projector must read the vision width of each scale, got 128, 64 and 1"),
        (
            "config.json",
            "image_encoder",
            {"_target_": "BasicImageEncoder", "start_tokens": None, "embed_time": True},
            r"image_encoder has the arguments \['embed_time'\], which are not computed here",
        ),
        ("config.json", "vision_resolution", 448, "vision_resolution must be -1, got 448"),
        (
            "config.json",
            "image_encoder",
            "TSPVideoEncoder",
            r"unknown image_encoder .*known are \['BasicImageEncoder'\]",
        ),
        (
            "config.json",
            "video_encoder",
            {"_target_": "BasicVideoEncoder", "end_tokens": 5},
            "end_tokens .* must be a text",
        ),
        ("config.json", "mm_vision_select_layer", None, "must name one of 2 layers, got None"),
        ("config.json", "s2", True, "s2 at fixed scales is not NVILA's; known are dynamic_s2"),
        (
            "config.json",
            "video_encoder",
            '{"_target_": "x.PoolVideoEncoder"}',
            "'PoolVideoEncoder'; known are .*TSPVid",
        ),
        ("config.json", "video_encoder", '{"_target_": "x.TSPVideoEncoder"}', "lack the key 'pool_sizes'"),
        (
            "config.json",
            "video_encoder",
            {"_target_": "TSPVideoEncoder", "pool_sizes": [[8, 1]]},
            "three whole numbers",
        ),
        ("config.json", "video_encoder", {"_target_": "TSPVideoEncoder", "pool_sizes": [[8, 2, 1]]}, "got 3 and 2"),
        ("config.json", "video_encoder", {"_target_": "TSPVideoEncoder", "pool_sizes": []}, "at least one level"),
        ("config.json", "mm_vision_select_layer", -9, "must name one of 2 layers, got -9"),
        ("config.json", "mm_vision_select_feature", "patch", "must be 'cls_patch', got 'patch'"),
        ("config.json", "max_tiles", "many", "max_tiles must be a whole number from 1 to 256, got 'many'"),
        ("config.json", "num_video_frames", 1.5, "num_video_frames must be a whole number"),
        ("config.json", "mm_vision_select_layer", 1.5, "got 1.5"),
        (
            "llm/config.json",
            "num_attention_heads",
            0,
            r"num_heads must be a whole number from 1 to 1024, got 0 \(num_attention_heads in the config\); copy",
        ),
        ("llm/config.json", "num_attention_heads", 64, "head size must be a multiple of halves"),
        ("llm/config.json", "rope_theta", -5, "rope_theta must be a number from 1 to 1e\\+12, got -5"),
        ("llm/config.json", "rms_norm_eps", None, "norm_eps must be a number from 1e-12 to 1, got None"),
        ("llm/config.json", "tie_word_embeddings", "no", "tie_word_embeddings must be true or false, got 'no'"),
        (
            "vision_tower/preprocessor_config.json",
            "image_mean",
            [0.4, 0.5, 0.5],
            r"image_mean must be \[0.5, 0.5, 0.5\]",
        ),
        ("vision_tower/preprocessor_config.json", "size", {"height": 448, "width": 448}, "must be 112, the tower's"),
        ("llm/config.json", "rope_theta", 0, "rope_theta must be a number .*, got 0"),
        ("llm/config.json", "rope_theta", float("nan"), "rope_theta must be a number .*, got nan"),
        ("llm/config.json", "num_hidden_layers", 10**7, r"num_layers must be .* to 1024, got 10000000 \(num_hidden_l"),
        ("llm/config.json", "vocab_size", 10**12, "vocab_size must be a whole number from 1 to 4194304"),
        ("llm/config.json", "max_position_embeddings", 2**31, "max_positions must be .* to 1048576, got 2147483648"),
        ("config.json", "num_video_frames", 10**9, "num_video_frames must be a whole number from 1 to 8192"),
        ("config.json", "num_video_frames", 0, "num_video_frames must be a whole number from 1 to 8192, got 0"),
        ("config.json", "max_tiles", 10**6, "max_tiles must be a whole number from 1 to 256, got 1000000"),
        ("config.json", "video_encoder", {"_target_": "TSPVideoEncoder", "pool_sizes": [[8, 1, 1]] * 99}, "at most 16"),
        ("config.json", "video_encoder", {"_target_": "TSPVideoEncoder", "pool_sizes": [[0, 1, 1]]}, "three whole num"),
        (
            "config.json",
            "video_encoder",
            {"_target_": "TSPVideoEncoder", "pool_sizes": [[n, 1, 1] for n in (8191, 8179)]},
            "frames that are pooled together must be at most 8192, got 66994189",
        ),
        ("vision_tower/config.json", "num_hidden_layers", 10**7, "num_layers must be a whole number from 1 to 1024"),
        ("llm/config.json", "intermediate_size", None, "mlp_width must be a whole number from 1 to 1048576, got None"),
        ("llm/config.json", "vocab_size", "x", "vocab_size must be a whole number from 1 to 4194304, got 'x'"),
        ("mm_projector/config.json", "mm_projector_type", "resampler", "known are .*mlp_downsample"),
        ("llm/config.json", "model_type", "mistral", "must be of type qwen2 or llama, got 'mistral'"),
        ("llm/config.json", "model_type", "llama", "mm_projector_type must be 'mlp_downsample'"),
        ("llm/config.json", "attention_bias", True, "attention_bias must be False"),
        ("llm/config.json", "num_key_value_heads", 3, "multiple of kv heads, got 4 and 3"),
        ("llm/config.json", "rope_scaling", {"type": "yarn", "factor": 4.0}, "must not be scaled"),
        ("llm/config.json", "use_sliding_window", True, "use_sliding_window must be False"),
        ("llm/config.json", "hidden_act", "gelu", "hidden_act must be 'silu', got 'gelu'"),
        ("vision_tower/config.json", "model_type", "clip_vision_model", "must be 'siglip_vision_model'"),
        ("vision_tower/config.json", "patch_size", 113, "patch size must be at most 112"),
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


FAMILY = [f"{name}/ckpt" for name in ("lite", "s2", "video")]


def to_flat(source: Path, folder: Path) -> Path:
    """Write an original checkpoint in the flat layout, as converters of it do."""
    folder.mkdir()
    tensors = {key: info.read() for key, info in open_checkpoint(source).tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "nvila",
        "text_config": json.loads((source / "llm" / "config.json").read_text()),
        "vision_config": json.loads((source / "vision_tower" / "config.json").read_text()),
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", FAMILY)
def test_flat_layout_is_read_as_the_row_of_the_family_that_its_projector_tells(name: str, tmp_path: Path) -> None:
    original = open_checkpoint(GOLDEN / name)

    flat = open_checkpoint(to_flat(GOLDEN / name, tmp_path / "flat"))

    assert flat.layout == "flat"
    assert flat.tokenizer_folder == tmp_path / "flat"
    own = ("name", "projector", "num_video_frames", "merge_scale")
    same = {field.name for field in dataclasses.fields(ModelSpec)} - set(own)
    assert {k: getattr(flat.spec, k) for k in same} == {k: getattr(original.spec, k) for k in same}
    assert flat.spec.projector.downsample == original.spec.projector.downsample
    weights = original.load()
    assert flat.load().keys() == weights.keys()
    assert all(np.array_equal(array, weights[key]) for key, array in flat.load().items())


def test_flat_config_that_says_more_is_believed(tmp_path: Path) -> None:
    folder = to_flat(GOLDEN / "video" / "ckpt", tmp_path / "flat")
    config = json.loads((folder / "config.json").read_text())
    encoder = {"_target_": "TSPVideoEncoder", "pool_sizes": [[4, 1, 1]]}
    (folder / "config.json").write_text(json.dumps(config | {"video_encoder": encoder, "num_video_frames": 64}))

    spec = open_checkpoint(folder).spec

    assert spec.video_pools == ((4, 1, 1),)
    assert spec.num_video_frames == 64


def test_flat_projector_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    folder = to_flat(GOLDEN / "lite" / "ckpt", tmp_path / "flat")
    tensors = load_file(folder / "model.safetensors")
    del tensors["mm_projector.layers.7.weight"]
    save_file(tensors, folder / "model.safetensors")

    with pytest.raises(CheckpointError, match=r"layers \[1, 2, 4, 5\] is of no known kind; known are"):
        open_checkpoint(folder)


def test_preview_layout_is_the_original_with_another_name(copy: Path) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "vila", "version": "2.0", "auto_map": {}}))

    checkpoint = open_checkpoint(copy)

    assert checkpoint.layout == "preview"
    assert checkpoint.spec == dataclasses.replace(open_checkpoint(CHECKPOINT).spec, name=checkpoint.spec.name)


def test_folder_of_no_known_layout_is_refused_with_those_that_are(copy: Path) -> None:
    shutil.rmtree(copy / "mm_projector")

    with pytest.raises(
        CheckpointError, match=r"neither the folders .*'llm'.* nor a config of type nvila or nvila_lite"
    ):
        open_checkpoint(copy)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_dtypes_load_alike(copy: Path, dtype: str) -> None:
    path = copy / "mm_projector" / "model.safetensors"
    save_file({key: array.astype(dtype) for key, array in load_file(path).items()}, path)

    got, want = open_checkpoint(copy).load("mm_projector"), open_checkpoint(CHECKPOINT).load("mm_projector")

    assert all(np.allclose(got[key], want[key], atol=1e-3) for key in want)


def test_config_of_226_kb_is_read(copy: Path) -> None:
    path = copy / "config.json"
    noise = {f"key_{i}": {"value": [i] * 20} for i in range(2000)}
    path.write_text(json.dumps(json.loads(path.read_text()) | noise))

    assert path.stat().st_size > 226_000
    assert open_checkpoint(copy).spec == dataclasses.replace(open_checkpoint(CHECKPOINT).spec, name="ckpt")


def test_configs_embedded_in_the_top_one_serve_where_a_part_has_none(copy: Path) -> None:
    (copy / "vision_tower" / "config.json").unlink()

    assert open_checkpoint(copy).spec.vision == open_checkpoint(CHECKPOINT).spec.vision


def test_index_that_points_out_of_its_folder_is_not_followed(copy: Path) -> None:
    path = copy / "llm" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "../../outside.safetensors")
    path.write_text(json.dumps(index))

    with pytest.raises(CheckpointError, match=r"llm/outside\.safetensors"):
        open_checkpoint(copy)


def test_weights_are_read_one_at_a_time_and_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = TensorInfo.read
    monkeypatch.setattr(TensorInfo, "read", lambda self, dtype: read.append(self.name) or original(self, dtype))

    weights = open_checkpoint(CHECKPOINT).weights("mm_projector")

    assert len(weights) == 10
    assert "mm_projector.layers.1.bias" in weights
    assert not read
    assert weights["mm_projector.layers.1.bias"].dtype == np.float32
    assert read == ["layers.1.bias"]


def test_weights_that_are_no_floats_are_refused(copy: Path) -> None:
    path = copy / "mm_projector" / "model.safetensors"
    save_file({key: array.astype(np.int8) for key, array in load_file(path).items()}, path)

    with pytest.raises(CheckpointError, match=r"weights must be of \['BF16'.* got \['I8'\]"):
        open_checkpoint(copy).weights()
