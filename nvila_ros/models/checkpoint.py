"""Read and write checkpoints in NVILA's original layout: one folder with `llm/`, `vision_tower/`, `mm_projector/`.

Safetensors only (a pickle can run code). Tensors are read one at a time from a memory map, so a caller that keeps a
part never holds the whole file. No torch here. Source: the layout written by NVLabs/VILA, `model_type: llava_llama`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - lets numpy name bfloat16, in which published checkpoints are stored
import numpy as np
from safetensors import SafetensorError, safe_open

from nvila_ros.errors import CheckpointError
from nvila_ros.models.spec import DOWNSAMPLE_BY_PROJECTOR, DecoderSpec, ModelSpec, ProjectorSpec, VisionSpec

PARTS = ("llm", "vision_tower", "mm_projector")
IMAGE_MODES = ("resize", "dynamic")  # how a single image becomes tiles: stretched to one, or cut


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint: its spec is checked, its weights are still on disk."""

    path: Path
    spec: ModelSpec
    files_by_part: dict[str, tuple[Path, ...]]

    def tensors(self, *parts: str) -> Iterator[tuple[str, np.ndarray]]:
        """Yield `part.key` and the tensor as stored, one at a time; without names, of every part.

        Raises:
            CheckpointError: a file is truncated or not safetensors.
        """
        for part in parts or PARTS:
            for path in self.files_by_part[part]:
                yield from _read_file(path, part)

    def load(self, *parts: str, dtype: Any = np.float32) -> dict[str, np.ndarray]:
        """Return the tensors that reach an answer, by `part.key`, cast to `dtype`.

        Raises:
            CheckpointError: a tensor is missing or has a shape that the config denies.
        """
        wanted = {k: s for k, s in expected_shapes(self.spec).items() if k.split(".", 1)[0] in (parts or PARTS)}
        found = {k: v.astype(dtype) for k, v in self.tensors(*parts) if k in wanted}
        missing = sorted(wanted.keys() - found.keys())
        if missing:
            raise CheckpointError(f"{self.path} lacks {len(missing)} tensors, first {missing[0]}; copy it anew")
        for key, shape in wanted.items():
            if found[key].shape != shape:
                raise CheckpointError(f"{key} must be {shape} by the config, the file has {found[key].shape}")
        return found


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint folder and check its configs.

    Raises:
        CheckpointError: the folder or one of its files is missing, unreadable or of an unknown kind.
    """
    root = Path(path)
    if not (root / "config.json").is_file():
        raise CheckpointError(f"a checkpoint is a folder with config.json, found none in {root}")
    files = {part: _weight_files(root / part) for part in PARTS}
    return Checkpoint(root, _read_spec(root), files)


def expected_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor that reaches an answer, by `part.key`."""
    return {**_llm_shapes(spec.decoder), **_vision_shapes(spec.vision), **_projector_shapes(spec.projector)}


def _read_spec(root: Path) -> ModelSpec:
    top = _read_json(root / "config.json")
    _check_encoders(root, top)
    vision, llm, projector = (_part_config(root, top, part) for part in ("vision_tower", "llm", "mm_projector"))
    try:
        return ModelSpec(
            name=root.name,
            vision=_vision_spec(vision, top.get("mm_vision_select_layer", -2)),
            projector=_projector_spec(projector, top["mm_hidden_size"], llm["hidden_size"]),
            decoder=_decoder_spec(llm),
            image_mode=top.get("image_aspect_ratio") or "resize",
            num_video_frames=top.get("num_video_frames") or 8,
            dtype=str(top.get("model_dtype", "torch.bfloat16")).removeprefix("torch."),
        )
    except KeyError as error:
        raise CheckpointError(f"the configs in {root} lack the key {error}") from error


def _check_encoders(root: Path, top: dict[str, Any]) -> None:
    """Refuse what would load and then answer otherwise than the checkpoint was trained to."""
    mode = top.get("image_aspect_ratio") or "resize"
    if top.get("s2") or top.get("dynamic_s2") or mode not in IMAGE_MODES:
        raise CheckpointError(f"{root} cuts images by {mode!r}; implemented are {list(IMAGE_MODES)} without s2")
    for key in ("image_encoder", "video_encoder"):
        # Upstream writes these as JSON in a string; its class name is all that matters here.
        encoder = str(top.get(key) or "Basic")
        if "Basic" not in encoder:
            raise CheckpointError(f"{root} has the {key} {encoder}; implemented are the Basic ones")


def _part_config(root: Path, top: dict[str, Any], part: str) -> dict[str, Any]:
    own = root / part / "config.json"
    return _read_json(own) if own.is_file() else top.get(f"{part}_cfg") or {}


def _vision_spec(config: dict[str, Any], select_layer: int) -> VisionSpec:
    num_layers = config["num_hidden_layers"]
    # hidden_states holds the embeddings first, so entry -2 is the output of the last layer but one.
    num_live = num_layers + 1 + select_layer if select_layer < 0 else select_layer
    return VisionSpec(
        width=config["hidden_size"],
        num_layers=num_layers,
        num_heads=config["num_attention_heads"],
        mlp_width=config["intermediate_size"],
        image_px=config["image_size"],
        patch_px=config["patch_size"],
        num_live_layers=num_live,
        norm_eps=config.get("layer_norm_eps", 1e-6),
    )


def _projector_spec(config: dict[str, Any], in_width: int, out_width: int) -> ProjectorSpec:
    kind = config["mm_projector_type"]
    if kind not in DOWNSAMPLE_BY_PROJECTOR:
        raise CheckpointError(f"unknown projector kind {kind!r}; known are {sorted(DOWNSAMPLE_BY_PROJECTOR)}")
    return ProjectorSpec(kind=kind, in_width=in_width, out_width=out_width)


def _decoder_spec(config: dict[str, Any]) -> DecoderSpec:
    if config.get("model_type") != "qwen2":
        raise CheckpointError(f"the language model must be of type qwen2, got {config.get('model_type')!r}")
    return DecoderSpec(
        width=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        mlp_width=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        rope_theta=config.get("rope_theta", 1e6),
        is_tied=bool(config.get("tie_word_embeddings")),
        max_positions=config.get("max_position_embeddings", 32768),
        norm_eps=config.get("rms_norm_eps", 1e-6),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable as JSON: {error}") from error


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(_read_json(index).get("weight_map", {}).values()))
    else:
        names = ["model.safetensors"]
    files = tuple(folder / Path(name).name for name in names)
    for path in files:
        if not path.is_file():
            pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
            hint = f"; found {pickles}, but pickles can run code: convert to safetensors" if pickles else ""
            raise CheckpointError(f"weights are missing: {path}{hint}")
    return files


def _read_file(path: Path, part: str) -> Iterator[tuple[str, np.ndarray]]:
    try:
        with safe_open(path, "np") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                yield f"{part}.{key}", file.get_tensor(key)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or not safetensors ({error}); copy it anew") from error


def _llm_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    d, kv, h = spec.width, spec.num_kv_heads * spec.head_size, spec.mlp_width
    layer: dict[str, tuple[int, ...]] = {
        **_linear("self_attn.q_proj", d, d),
        **_linear("self_attn.k_proj", kv, d),
        **_linear("self_attn.v_proj", kv, d),
        "self_attn.o_proj.weight": (d, d),
        "mlp.gate_proj.weight": (h, d),
        "mlp.up_proj.weight": (h, d),
        "mlp.down_proj.weight": (d, h),
        "input_layernorm.weight": (d,),
        "post_attention_layernorm.weight": (d,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "llm.model.embed_tokens.weight": (spec.vocab_size, d),
        "llm.model.norm.weight": (d,),
    }
    if not spec.is_tied:
        shapes["llm.lm_head.weight"] = (spec.vocab_size, d)
    return shapes | _repeat("llm.model.layers", spec.num_layers, layer)


def _vision_shapes(spec: VisionSpec) -> dict[str, tuple[int, ...]]:
    e, h, p = spec.width, spec.mlp_width, spec.patch_px
    layer = {
        **_norm("layer_norm1", e),
        **_norm("layer_norm2", e),
        **_linear("mlp.fc1", h, e),
        **_linear("mlp.fc2", e, h),
    }
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        layer |= _linear(f"self_attn.{name}", e, e)
    stem = "vision_tower.vision_model"
    return {
        f"{stem}.embeddings.patch_embedding.weight": (e, 3, p, p),
        f"{stem}.embeddings.patch_embedding.bias": (e,),
        f"{stem}.embeddings.position_embedding.weight": (spec.num_patches, e),
    } | _repeat(f"{stem}.encoder.layers", spec.num_live_layers, layer)


def _projector_shapes(spec: ProjectorSpec) -> dict[str, tuple[int, ...]]:
    merged, d = spec.downsample**2 * spec.in_width, spec.out_width
    shapes = _norm("1", merged)
    if spec.kind == "mlp_downsample_3x3_fix":
        middle = 3 * spec.in_width
        shapes |= _linear("2", middle, merged) | _norm("4", middle) | _linear("5", d, middle) | _linear("7", d, d)
    else:
        shapes |= _linear("2", d, merged) | _linear("4", d, d)
    return {f"mm_projector.layers.{key}": shape for key, shape in shapes.items()}


def _linear(name: str, out_width: int, in_width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out_width, in_width), f"{name}.bias": (out_width,)}


def _norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _repeat(stem: str, count: int, layer: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {f"{stem}.{i}.{key}": shape for i in range(count) for key, shape in layer.items()}
