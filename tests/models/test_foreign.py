"""A config of each published relative of NVILA: it is refused by name, with the reason and what it would take.

The dicts are those of the pages and listings, as far as they show them, filled up with NVILA-8B's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nvila_ros.errors import CheckpointError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.configs import check_preprocessor, complete_flat, read_spec

QWEN2: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 151648,
    "rope_theta": 1e6,
}
SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "image_size": 448,
    "patch_size": 14,
}
TOP: dict[str, Any] = {"model_type": "llava_llama", "image_aspect_ratio": "resize", "mm_vision_select_layer": -2}
SOUND = {
    "sound_tower_cfg": {"model_type": "qwen2_audio"},
    "sound_mm_projector_cfg": {"model_type": "sound_mm_projector"},
}
EMBED_TIME = {"_target_": "llava.model.encoders.BasicVideoEncoder", "start_tokens": None, "embed_time": "True"}
FLAT_SHAPES = {"mm_projector.layers.1.weight": (4608,), "mm_projector.layers.2.weight": (3584, 4608)} | {
    "mm_projector.layers.4.weight": (3584, 3584)
}
# What differs from NVILA in each kind, by its published name: of the top config, the tower and the language model.
ORIGINAL: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "OmniVinci": (
        {**SOUND, "model_type": "vila"},
        {},
        {},
        r"\['sound_mm_projector', 'sound_tower'\] besides .* encoder for",
    ),
    "OmniVinci without sound": (
        {"video_encoder": EMBED_TIME},
        {},
        {},
        r"arguments \['embed_time'\], which are not computed",
    ),
    "SpatialRGPT": ({"enable_region": True, "enable_depth": True}, {}, {}, "enable_region: SpatialRGPT reads regions"),
    "SpatialRGPT with its extractor": ({"region_extractor_cfg": {"a": 1}}, {}, {}, r"\['region_extractor'\] besides"),
    "VILA-HD-8B-PS3-1.5K-SigLIP": (
        {"model_type": "llava_topdown_llama"},
        {},
        {},
        "PS3 tower looks again where the quest",
    ),
    "VILA-HD by its flag": ({"ps3": True}, {}, {}, "ps3: the PS3 tower .*it takes that tower and its two passes"),
    "PS3-4K-SigLIP2 as tower": (
        {},
        {"model_type": "ps3_siglip2_vision_model"},
        {},
        "'ps3_siglip2_vision_model' of the tower",
    ),
    "qwen2-7b-longvila-256f": (
        {},
        {"image_size": 384},
        {},
        "LongVILA, which writes visual tokens column by column and no",
    ),
    "Cosmos3-Edge": ({"model_type": "cosmos3_edge"}, {}, {}, "a type of Cosmos 3, which is no NVILA"),
    "bitsandbytes": ({"quantization_config": {"bits": 4}}, {}, {}, "quantized by another tool.*nvila build"),
}
FLAT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "NVILA-8B-HD-Video": ({}, {"image_size": 392}, "392 px are those of NVILA-8B-HD-Video, whose AutoGaze"),
    "AutoGaze by its settings": ({"gazing_ratio": 0.75}, {}, "gazing_ratio: AutoGaze chooses patches before the tower"),
}


def open_original(root: Path, top: dict[str, Any], vision: dict[str, Any], llm: dict[str, Any]) -> None:
    """Open a checkpoint's configs, as the loader does, up to where it would read weights."""
    configs = {
        "llm": QWEN2 | llm,
        "vision_tower": SIGLIP | vision,
        "mm_projector": {"mm_projector_type": "mlp_downsample"},
    }
    for part, config in configs.items():
        (root / part).mkdir()
        (root / part / "config.json").write_text(json.dumps(config))
    (root / "config.json").write_text(json.dumps(TOP | top))
    try:
        open_checkpoint(root)
    except CheckpointError as error:
        if "weights are missing" not in str(error):
            raise
    projector = configs["mm_projector"]
    read_spec(root.name, TOP | top, vision=configs["vision_tower"], llm=configs["llm"], projector=projector)


@pytest.mark.parametrize("kind", ORIGINAL)
def test_relatives_in_three_folders_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    top, vision, llm, reason = ORIGINAL[kind]
    with pytest.raises(CheckpointError, match=reason):
        open_original(tmp_path, top, vision, llm)


def test_the_same_without_the_differences_is_nvila(tmp_path: Path) -> None:
    open_original(tmp_path, {}, {}, {})


@pytest.mark.parametrize("kind", FLAT)
def test_flat_relatives_are_refused_by_name(kind: str) -> None:
    top, vision, reason = FLAT[kind]
    with pytest.raises(CheckpointError, match=reason):
        complete_flat(kind, {"text_config": QWEN2, "vision_config": SIGLIP | vision, **top}, FLAT_SHAPES)


def test_flat_tensors_of_other_parts_are_refused() -> None:
    top = {"text_config": QWEN2, "vision_config": SIGLIP}
    assert complete_flat("flat", top, FLAT_SHAPES)["image_aspect_ratio"] == "resize"
    with pytest.raises(CheckpointError, match=r"\['autogaze'\] besides \(tensors\)"):
        complete_flat("flat", top, FLAT_SHAPES | {"autogaze.layers.0.weight": (1,)})


def test_a_folder_of_another_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "depth_tower").mkdir()
    with pytest.raises(CheckpointError, match=r"\['depth_tower'\] besides \(config or folder\)"):
        open_original(tmp_path, {}, {}, {})


def test_an_image_processor_that_chooses_patches_is_refused() -> None:
    with pytest.raises(CheckpointError, match="task_loss_requirement of the image processor: AutoGaze"):
        check_preprocessor({"do_resize": True, "task_loss_requirement": 0.7}, 448)
