"""The tensors that a checkpoint must have, and their shapes, by upstream's keys behind the part's name."""

from __future__ import annotations

from collections.abc import Mapping

from nvila_ros.models.spec import DecoderSpec, ModelSpec, ProjectorSpec, VisionSpec

Shapes = dict[str, tuple[int, ...]]
EMBEDDING, HEAD = "llm.model.embed_tokens.weight", "llm.lm_head.weight"
"""Tables of the vocabulary. Tied models have the embedding alone, except builds with a quantized head."""


def expected_shapes(spec: ModelSpec) -> Shapes:
    """Return the shape of every tensor that reaches an answer, by `part.key`."""
    return {**_llm_shapes(spec.decoder), **_vision_shapes(spec.vision), **_projector_shapes(spec.projector)}


def find_faults(spec: ModelSpec, found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return what is wrong with tensors of these shapes for this model, each fault a sentence with its remedy."""
    wanted = expected_shapes(spec)
    missing = sorted(wanted.keys() - found.keys())
    faults = [f"{len(missing)} tensors are missing, first {missing[0]}; copy the checkpoint anew"] if missing else []
    return faults + [
        f"{key} must be {shape} by the config, the file has {tuple(found[key])}; use config and weights of one model"
        for key, shape in wanted.items()
        if key in found and tuple(found[key]) != shape
    ]


def _llm_shapes(spec: DecoderSpec) -> Shapes:
    d, kv, h = spec.width, spec.num_kv_heads * spec.head_size, spec.mlp_width
    layer: Shapes = {
        **_linear("self_attn.q_proj", d, d, spec.has_bias),
        **_linear("self_attn.k_proj", kv, d, spec.has_bias),
        **_linear("self_attn.v_proj", kv, d, spec.has_bias),
        "self_attn.o_proj.weight": (d, d),
        "mlp.gate_proj.weight": (h, d),
        "mlp.up_proj.weight": (h, d),
        "mlp.down_proj.weight": (d, h),
        "input_layernorm.weight": (d,),
        "post_attention_layernorm.weight": (d,),
    }
    shapes: Shapes = {
        EMBEDDING: (spec.vocab_size, d),
        "llm.model.norm.weight": (d,),
    }
    if not spec.is_tied:
        shapes[HEAD] = (spec.vocab_size, d)
    return shapes | _repeat("llm.model.layers", spec.num_layers, layer)


def _vision_shapes(spec: VisionSpec) -> Shapes:
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


def _projector_shapes(spec: ProjectorSpec) -> Shapes:
    merged, d = spec.downsample**2 * spec.in_width, spec.out_width
    shapes = _norm("1", merged)
    if spec.kind == "mlp_downsample_3x3_fix":
        middle = 3 * spec.in_width
        shapes |= _linear("2", middle, merged) | _norm("4", middle) | _linear("5", d, middle) | _linear("7", d, d)
    else:
        shapes |= _linear("2", d, merged) | _linear("4", d, d)
    return {f"mm_projector.layers.{key}": shape for key, shape in shapes.items()}


def _linear(name: str, out_width: int, in_width: int, has_bias: bool = True) -> Shapes:
    bias = {f"{name}.bias": (out_width,)} if has_bias else {}
    return {f"{name}.weight": (out_width, in_width), **bias}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _repeat(stem: str, count: int, layer: Shapes) -> Shapes:
    return {f"{stem}.{i}.{key}": shape for i in range(count) for key, shape in layer.items()}
