"""The three parts as ONNX graphs: vision, projector, and the decoder with its KV cache in append form.

The decoder takes the past keys and values token-major and gives only the new ones, so a runtime that binds `new` right
behind `past` in one buffer appends without a copy. Rotary angles and the mask are inputs: the graph holds no length.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, G visual tokens, L tokens in this call, T past
tokens, M = T + L, D decoder width, A query heads, K kv heads, R = A / K, S head size, V vocabulary.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import onnx

from nvila_ros.export.graph import WEIGHTS_FILE, GraphPen
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.spec import DecoderSpec, ProjectorSpec, VisionSpec

ALIGNMENT = 64  # bytes; every weight starts on a cache line
Weights = dict[str, np.ndarray]


def draw_vision(spec: VisionSpec, weights: Weights) -> GraphPen:
    """Draw `tile` (N, 3, H, W) to `feat` (N, P, E)."""
    pen = GraphPen("vision")
    tile = pen.input("tile", ("N", 3, spec.image_px, spec.image_px))
    stem = "vision_tower.vision_model"
    kernel, bias = (f"{stem}.embeddings.patch_embedding.{key}" for key in ("weight", "bias"))
    strides = [spec.patch_px, spec.patch_px]
    patches = pen.op(
        "Conv", tile, pen.weight(kernel, weights[kernel]), pen.weight(bias, weights[bias]), strides=strides
    )
    x = pen.transpose(pen.reshape(patches, 0, spec.width, spec.num_patches), 0, 2, 1)
    position = f"{stem}.embeddings.position_embedding.weight"
    x = pen.op("Add", x, pen.weight(position, weights[position]))
    for i in range(spec.num_live_layers):
        x = _vision_layer(pen, spec, weights, f"{stem}.encoder.layers.{i}", x)
    pen.output(x, "feat", ("N", spec.num_patches, spec.width))
    return pen


def _vision_layer(pen: GraphPen, spec: VisionSpec, weights: Weights, name: str, x: str) -> str:
    normed = pen.layer_norm(x, f"{name}.layer_norm1", weights, spec.norm_eps)
    x = pen.op("Add", x, _vision_attention(pen, spec, weights, f"{name}.self_attn", normed))
    normed = pen.layer_norm(x, f"{name}.layer_norm2", weights, spec.norm_eps)
    hidden = pen.gelu_tanh(pen.linear(normed, f"{name}.mlp.fc1", weights))
    return pen.op("Add", x, pen.linear(hidden, f"{name}.mlp.fc2", weights))


def _vision_attention(pen: GraphPen, spec: VisionSpec, weights: Weights, name: str, x: str) -> str:
    head_size = spec.width // spec.num_heads
    q, k, v = (
        pen.reshape(pen.linear(x, f"{name}.{key}_proj", weights), 0, spec.num_patches, spec.num_heads, head_size)
        for key in "qkv"
    )
    scaled = pen.op("Mul", pen.transpose(q, 0, 2, 1, 3), pen.scalar(head_size**-0.5))
    share = pen.op("Softmax", pen.op("MatMul", scaled, pen.transpose(k, 0, 2, 3, 1)), axis=-1)
    mixed = pen.transpose(pen.op("MatMul", share, pen.transpose(v, 0, 2, 1, 3)), 0, 2, 1, 3)
    return pen.linear(pen.reshape(mixed, 0, spec.num_patches, spec.width), f"{name}.out_proj", weights)


def draw_projector(spec: ProjectorSpec, grid: int, weights: Weights) -> GraphPen:
    """Draw `feat` (N, P, E) to `visual` (N, G, D)."""
    pen = GraphPen("projector")
    e, r = spec.in_width, spec.downsample
    feat = pen.input("feat", ("N", grid * grid, e))
    x = _space_to_depth(pen, feat, grid, r, e)
    name = "mm_projector.layers"
    x = pen.linear(pen.layer_norm(x, f"{name}.1", weights, 1e-5), f"{name}.2", weights)
    if spec.kind == "mlp_downsample_3x3_fix":
        x = pen.layer_norm(pen.gelu(x), f"{name}.4", weights, 1e-5)
        x = pen.linear(pen.gelu(pen.linear(x, f"{name}.5", weights)), f"{name}.7", weights)
    else:
        x = pen.linear(pen.gelu(x), f"{name}.4", weights)
    pen.output(x, "visual", ("N", (-(-grid // r)) ** 2, spec.out_width))
    return pen


def _space_to_depth(pen: GraphPen, feat: str, grid: int, r: int, e: int) -> str:
    """Zero-pad at the bottom and right, then merge blocks in the order (row in block, column in block, channel)."""
    pad = -grid % r
    blocks = (grid + pad) // r
    x = pen.reshape(feat, 0, grid, grid, e)
    if pad:
        x = pen.op("Pad", x, pen.ints(0, 0, 0, 0, 0, pad, pad, 0))
    x = pen.transpose(pen.reshape(x, -1, blocks, r, blocks, r, e), 0, 1, 3, 2, 4, 5)
    return pen.reshape(x, -1, blocks * blocks, r * r * e)


def draw_decoder(spec: DecoderSpec, weights: Weights) -> GraphPen:
    """Draw `embeds` (L, D), `cos` and `sin` (L, S), `mask` (L, M) and the past to `logits` (V,) of the last token."""
    pen = GraphPen("decoder")
    x = pen.input("embeds", ("L", spec.width))
    cos, sin = (pen.input(name, ("L", spec.head_size)) for name in ("cos", "sin"))
    mask = pen.input("mask", ("L", "M"))
    for i in range(spec.num_layers):
        name = f"llm.model.layers.{i}"
        normed = pen.rms_norm(x, f"{name}.input_layernorm", weights, spec.norm_eps)
        x = pen.op("Add", x, _decoder_attention(pen, spec, weights, i, normed, (cos, sin, mask)))
        normed = pen.rms_norm(x, f"{name}.post_attention_layernorm", weights, spec.norm_eps)
        gate = pen.silu(pen.linear(normed, f"{name}.mlp.gate_proj", weights))
        hidden = pen.op("Mul", gate, pen.linear(normed, f"{name}.mlp.up_proj", weights))
        x = pen.op("Add", x, pen.linear(hidden, f"{name}.mlp.down_proj", weights))
    last = pen.op("Gather", x, pen.constant(np.array(-1, np.int64)), axis=0)
    normed = pen.rms_norm(last, "llm.model.norm", weights, spec.norm_eps)
    head = "llm.model.embed_tokens.weight" if spec.is_tied else "llm.lm_head.weight"
    logits = pen.op("MatMul", normed, pen.weight("llm.head.T", weights[head].T))
    pen.output(logits, "logits", (spec.vocab_size,))
    return pen


def _decoder_attention(
    pen: GraphPen, spec: DecoderSpec, weights: Weights, layer: int, x: str, tables: tuple[str, str, str]
) -> str:
    """Attend with the query heads of one kv head folded into rows, so keys and values are never repeated."""
    cos, sin, mask = tables
    s, num_kv = spec.head_size, spec.num_kv_heads
    rows = spec.num_heads // num_kv
    name = f"llm.model.layers.{layer}.self_attn"
    q = pen.reshape(pen.linear(x, f"{name}.q_proj", weights), -1, spec.num_heads, s)
    q = pen.op("Mul", _rotate(pen, q, cos, sin, s), pen.scalar(s**-0.5))
    k, v = _append_past(pen, spec, weights, layer, x, (cos, sin))
    q = pen.transpose(pen.reshape(q, -1, num_kv, rows, s), 1, 2, 0, 3)  # (K, R, L, S)
    scores = pen.op("MatMul", pen.reshape(q, num_kv, -1, s), pen.transpose(k, 1, 2, 0))  # (K, R*L, M)
    length = pen.op("Shape", scores)
    by_row = pen.op("Concat", pen.ints(num_kv, rows, -1), pen.op("Slice", length, pen.ints(2), pen.ints(3)), axis=0)
    share = pen.op("Softmax", pen.op("Add", pen.op("Reshape", scores, by_row), mask), axis=-1)
    mixed = pen.op("MatMul", pen.op("Reshape", share, length), pen.transpose(v, 1, 0, 2))  # (K, R*L, S)
    mixed = pen.transpose(pen.reshape(mixed, num_kv, rows, -1, s), 2, 0, 1, 3)  # (L, K, R, S)
    return pen.linear(pen.reshape(mixed, -1, spec.width), f"{name}.o_proj", weights)


def _append_past(
    pen: GraphPen, spec: DecoderSpec, weights: Weights, layer: int, x: str, tables: tuple[str, str]
) -> tuple[str, str]:
    """Return all keys and values, (M, K, S) each, and declare the new ones as outputs."""
    num_kv, s = spec.num_kv_heads, spec.head_size
    both = []
    for key in ("k", "v"):
        new = pen.linear(x, f"llm.model.layers.{layer}.self_attn.{key}_proj", weights)
        new = pen.reshape(new, -1, num_kv, s)
        if key == "k":
            new = _rotate(pen, new, *tables, s)
        past = pen.input(f"past_{key}_{layer}", ("T", num_kv, s))
        pen.output(new, f"new_{key}_{layer}", ("L", num_kv, s))
        both.append(pen.op("Concat", past, new, axis=0))
    return both[0], both[1]


def _rotate(pen: GraphPen, x: str, cos: str, sin: str, head_size: int) -> str:
    """Rotary positions on (L, heads, S); channel i pairs with i + S/2."""
    half = head_size // 2
    first = pen.op("Slice", x, pen.ints(0), pen.ints(half), pen.ints(2))
    second = pen.op("Slice", x, pen.ints(half), pen.ints(head_size), pen.ints(2))
    turned = pen.op("Concat", pen.op("Neg", second), first, axis=2)
    along, across = (pen.op("Unsqueeze", table, pen.ints(1)) for table in (cos, sin))
    return pen.op("Add", pen.op("Mul", x, along), pen.op("Mul", turned, across))


def draw_parts(checkpoint: Checkpoint, weights: Weights) -> dict[str, GraphPen]:
    """Draw every part of a checkpoint, by name."""
    spec = checkpoint.spec
    return {
        "vision": draw_vision(spec.vision, weights),
        "projector": draw_projector(spec.projector, spec.vision.grid, weights),
        "decoder": draw_decoder(spec.decoder, weights),
    }


def export_parts(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    """Write `vision.onnx`, `projector.onnx`, `decoder.onnx`, one weights file and a manifest; return the paths.

    The manifest is written last, so a folder without one is an export that did not finish.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = draw_parts(checkpoint, checkpoint.load())
    offsets = _write_weights(parts, folder / WEIGHTS_FILE)
    paths = []
    for name, pen in parts.items():
        paths.append(folder / f"{name}.onnx")
        onnx.save(pen.finish(offsets), paths[-1])
        onnx.checker.check_model(str(paths[-1]), full_check=True)
    manifest = {"model": checkpoint.spec.name, "precision": "fp32", "parts": [path.name for path in paths]}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return [*paths, folder / WEIGHTS_FILE, folder / "manifest.json"]


def _write_weights(parts: dict[str, GraphPen], path: Path) -> dict[str, int]:
    offsets: dict[str, int] = {}
    staged = path.with_suffix(".part")
    with staged.open("wb") as file:
        for pen in parts.values():
            for name, array in pen.weights.items():
                file.write(b"\0" * (-file.tell() % ALIGNMENT))
                offsets[name] = file.tell()
                file.write(array.tobytes())
    os.replace(staged, path)
    return offsets
