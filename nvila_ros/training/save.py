"""Write a model as a checkpoint in NVILA's original layout: three parts, their configs in upstream's spelling, bf16.

Source: the files that NVLabs/VILA writes and its loader asks for.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from nvila_ros.files import atomic_folder
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import NO_POOL, DecoderSpec, ModelSpec, ProjectorSpec, VisionSpec
from nvila_ros.prompt.template import SYSTEM
from nvila_ros.prompt.time_tokens import FORMAT as TIME_FORMAT
from nvila_ros.prompt.time_tokens import time_token_names
from nvila_ros.training.soft_times import STD as SOFT_STD


def save_checkpoint(model: Nvila, tokenizer: Path, folder: Path) -> None:
    """Write the model in bf16; an older one in `folder` is replaced in one step, its model card is kept.

    Args:
        model: what to save.
        tokenizer: folder with `vocab.json`, `merges.txt` and `added_tokens.json`.
        folder: the checkpoint to write.

    Raises:
        ConfigError: it cannot be written; the older one is still there.
    """
    with atomic_folder(folder) as staged:
        _write(model, tokenizer, staged)
        if (folder / "README.md").is_file():
            shutil.copy(folder / "README.md", staged)


def _write(model: Nvila, tokenizer: Path, staged: Path) -> None:
    shutil.copytree(tokenizer, staged / "llm")
    added = json.loads((tokenizer / "added_tokens.json").read_text(encoding="utf-8"))
    for name, config in part_configs(model.spec, added).items():
        write_json(staged / name, config)
    for part, tensors in _tensors_by_part(model).items():
        path = staged / part / "model.safetensors"
        save_file(tensors, path, metadata={"format": "pt"})
        path.chmod(0o644)  # written as readable by its owner alone


def copy_tokenizer(checkpoint: Path, folder: Path) -> None:
    """Copy the tokenizer's files of a checkpoint to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        shutil.copy(checkpoint / "llm" / name, folder)


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _tensors_by_part(model: Nvila) -> dict[str, dict[str, torch.Tensor]]:
    parts: dict[str, dict[str, torch.Tensor]] = {"llm": {}, "vision_tower": {}, "mm_projector": {}}
    for key, tensor in model.state_dict().items():
        part, name = key.split(".", 1)
        parts[part][name] = tensor.to(torch.bfloat16).contiguous()
    parts["vision_tower"].update(_dead_tensors(model.spec.vision, parts["vision_tower"]))
    return parts


def _dead_tensors(spec: VisionSpec, tower: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Upstream's loader wants the layers behind the features and the final norm, though none reaches an answer."""
    live = f"vision_model.encoder.layers.{spec.num_live_layers - 1}."
    dead = {
        key.replace(live, f"vision_model.encoder.layers.{i}."): torch.zeros_like(value)
        for i in range(spec.num_live_layers, spec.num_layers)
        for key, value in tower.items()
        if key.startswith(live)
    }
    norm = torch.ones(spec.width, dtype=torch.bfloat16)
    stem = "vision_model.post_layernorm"
    return dead | {f"{stem}.weight": norm, f"{stem}.bias": torch.zeros_like(norm)}


def part_configs(spec: ModelSpec, added: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Every config file of the checkpoint by its path."""
    llm, vision, projector = (
        _llm_config(spec.decoder, added),
        _vision_config(spec.vision),
        _projector_config(spec.projector),
    )
    half, size = [0.5, 0.5, 0.5], spec.vision.image_px
    return {
        "config.json": {**_top_config(spec, llm, vision, projector), **_time_config(added)},
        "llm/config.json": llm,
        "llm/tokenizer_config.json": _tokenizer_config(spec.decoder, added),
        "llm/special_tokens_map.json": {"bos_token": "[BOS]", "eos_token": "<|im_end|>", "pad_token": "[PAD]"},
        "llm/generation_config.json": {"eos_token_id": added["<|im_end|>"], "do_sample": False},
        "vision_tower/config.json": vision,
        "vision_tower/preprocessor_config.json": {
            "image_processor_type": "SiglipImageProcessor",
            "do_resize": True,
            "size": {"height": size, "width": size},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": half,
            "image_std": half,
        },
        "mm_projector/config.json": projector,
    }


def _top_config(
    spec: ModelSpec, llm: dict[str, Any], vision: dict[str, Any], projector: dict[str, Any]
) -> dict[str, Any]:
    return {
        "model_type": "llava_llama",
        "architectures": ["LlavaLlamaModel"],
        "model_dtype": "torch.bfloat16",
        "hidden_size": spec.decoder.width,
        "mm_hidden_size": spec.projector.in_width,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "cls_patch",
        "image_aspect_ratio": spec.image_mode,
        "num_video_frames": spec.num_video_frames,
        "fps": 0.0,
        "s2": False,
        **_scale_config(spec),
        "image_encoder": '{"_target_": "llava.model.encoders.BasicImageEncoder"}',
        "video_encoder": _video_encoder(spec),
        "llm_cfg": llm,
        "vision_tower_cfg": vision,
        "mm_projector_cfg": projector,
    }


def _scale_config(spec: ModelSpec) -> dict[str, Any]:
    if not spec.scales:
        return {"dynamic_s2": False}
    return {
        "dynamic_s2": True,
        "s2_scales": ",".join(map(str, spec.scales)),
        "s2_max_split_size": spec.vision.image_px,
        "s2_resize_output_to_scale_idx": spec.merge_scale,
        "max_tiles": spec.max_tiles,
    }


def _video_encoder(spec: ModelSpec) -> str:
    if spec.video_pools == (NO_POOL,):
        return '{"_target_": "llava.model.encoders.BasicVideoEncoder"}'
    return json.dumps({"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": spec.video_pools})


def _time_config(added: dict[str, int]) -> dict[str, Any]:
    """Return what upstream's training writes down of time tokens."""
    ids = [added[name] for name in time_token_names(len(added)) if name in added]
    if not ids:
        return {}
    return {
        "num_time_tokens": len(ids),
        "time_token_format": TIME_FORMAT,
        "time_token_ids": ids,
        "soft_ce_std": SOFT_STD,
    }


def _llm_config(spec: DecoderSpec, added: dict[str, int]) -> dict[str, Any]:
    return {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "hidden_size": spec.width,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "intermediate_size": spec.mlp_width,
        "vocab_size": spec.vocab_size,
        "rope_theta": spec.rope_theta,
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.is_tied,
        "max_position_embeddings": spec.max_positions,
        "model_max_length": spec.max_positions,
        "hidden_act": "silu",
        "bos_token_id": added["[BOS]"],
        "eos_token_id": added["<|im_end|>"],
        "torch_dtype": "bfloat16",
    }


def _vision_config(spec: VisionSpec) -> dict[str, Any]:
    return {
        "model_type": "siglip_vision_model",
        "architectures": ["SiglipVisionModel"],
        "hidden_size": spec.width,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "intermediate_size": spec.mlp_width,
        "image_size": spec.image_px,
        "patch_size": spec.patch_px,
        "num_channels": 3,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": spec.norm_eps,
        "attention_dropout": 0.0,
        "vision_use_head": False,
        "torch_dtype": "bfloat16",
    }


def _projector_config(spec: ProjectorSpec) -> dict[str, Any]:
    return {
        "model_type": "v2l_projector",
        "architectures": ["MultimodalProjector"],
        "mm_projector_type": spec.kind,
        "torch_dtype": "bfloat16",
    }


def _tokenizer_config(spec: DecoderSpec, added: dict[str, int]) -> dict[str, Any]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    times = set(time_token_names(len(added)))  # upstream adds them as ordinary tokens
    template = (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
        "{% for message in messages if message['content'] is not none %}{{ '<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(i): {"content": name, **flags, "special": name not in times} for name, i in added.items()
        },
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": "[BOS]",
        "eos_token": "<|im_end|>",
        "pad_token": "[PAD]",
        "unk_token": None,
        "errors": "replace",
        "model_max_length": spec.max_positions,
        "split_special_tokens": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
