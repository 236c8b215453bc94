"""What `nvila inspect` shows of a checkpoint or a published variant, as plain values for JSON.

In: an `Inspection`, or a `Variant`. Out: a dict with the same keys for both; unknown values are null or empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from nvila_ros.models.checkpoint import TensorInfo
from nvila_ros.models.spec import NO_POOL, ModelSpec
from nvila_ros.models.variants import (
    PRECISIONS,
    Variant,
    clip_cost,
    count_parameters,
    image_cost,
    kv_bytes,
    nearest_variant,
    tile_range,
    weight_bytes,
)
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.tools.inspection import Inspection, tensor_bytes
from nvila_ros.visual.tiling import choose_grid

CAMERAS = ((640, 480), (1280, 720), (1920, 1080))
"""Widths and heights in px of usual cameras."""
PART_NAMES = {"vision_tower": "vision tower", "mm_projector": "projector", "llm": "language model"}
Values = dict[str, Any]


def describe_variant(variant: Variant) -> Values:
    """Return the page of a published variant, which has no files."""
    return {
        "checkpoint": None,
        "layout": None,
        **_variant_values(variant),
        **_spec_values(variant.spec, {}),
        "tokens": [],
        "faults": [],
        "remarks": [],
    }


def describe_inspection(found: Inspection) -> Values:
    """Return the page of a checkpoint; what its faults hide is null or empty."""
    spec = found.spec
    return {
        "checkpoint": str(found.path),
        "layout": found.layout or None,
        **_variant_values(nearest_variant(spec) if spec else None),
        **(_spec_values(spec, found.tensors) if spec else {"spec": None, "parts": _parts(None, found.tensors)}),
        "tokens": _tokens(found.tokenizer, spec) if found.tokenizer else [],
        "faults": found.faults,
        "remarks": found.remarks,
    }


def _variant_values(variant: Variant | None) -> Values:
    if variant is None:
        return {"variant": None}
    fields = ("language_model", "repos", "note", "inferred")
    return {"variant": variant.name, **{name: getattr(variant, name) for name in fields}}


def _spec_values(spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> Values:
    clip_frames = spec.num_video_frames - spec.num_video_frames % spec.frames_per_group
    return {
        "spec": asdict(spec),
        "parts": _parts(spec, tensors),
        "image": _image_words(spec),
        "video": _video_words(spec),
        "images": [_camera(spec, width, height) for width, height in CAMERAS],
        "clip": {"num_frames": clip_frames, **asdict(clip_cost(spec, clip_frames))},
        "bytes_by_precision": {precision: weight_bytes(spec, precision) for precision in PRECISIONS},
        "kv_bytes_per_1000_positions": kv_bytes(spec, 1000),
    }


def _parts(spec: ModelSpec | None, tensors: Mapping[str, TensorInfo]) -> list[Values]:
    """Return what is known of each part: from the spec, where there is one, and from the files, where there are."""
    kinds = _kinds(spec) if spec else {}
    counts = count_parameters(spec) if spec else {}
    parts = []
    for part, name in PART_NAMES.items():
        own = [info for key, info in tensors.items() if key.startswith(f"{part}.")]
        values: Values = {"part": name, **kinds.get(part, {})}
        if part in counts:
            values |= {"parameters": counts[part].live, "dead_parameters": counts[part].dead}
        values["dtypes"] = sorted({info.dtype for info in own})
        values["bytes_in_files"] = sum(tensor_bytes(info) for info in own)
        values["files"] = len({info.file for info in own})
        parts.append(values)
    return parts


def _kinds(spec: ModelSpec) -> dict[str, Values]:
    vision, projector, decoder = spec.vision, spec.projector, spec.decoder
    head = "tied" if decoder.is_tied else "untied"
    return {
        "vision_tower": {
            "kind": "SigLIP",
            "sizes": f"{vision.width} wide, {vision.num_heads} heads, MLP {vision.mlp_width}, "
            f"{vision.image_px} px in patches of {vision.patch_px}",
            "layers": vision.num_live_layers,
            "dead_layers": vision.num_layers - vision.num_live_layers,
        },
        "mm_projector": {
            "kind": projector.kind,
            "sizes": f"{projector.downsample}x{projector.downsample} patches of {projector.in_width} to "
            f"{projector.out_width}, {spec.tokens_per_tile} tokens a tile",
        },
        "llm": {
            "kind": "Qwen2" if decoder.has_bias else "Llama",
            "sizes": f"{decoder.width} wide, {decoder.num_heads} heads, {decoder.num_kv_heads} kv heads, "
            f"MLP {decoder.mlp_width}, vocabulary {decoder.vocab_size}, {head}",
            "layers": decoder.num_layers,
            "dead_layers": 0,
        },
    }


def _image_words(spec: ModelSpec) -> str:
    px, (fewest, most) = spec.vision.image_px, tile_range(spec)
    if spec.image_mode == "resize":
        return f"resize: an image is stretched to one tile of {px} px"
    alone = "other images and frames are one tile each"
    if spec.image_mode == "dynamic":
        return (
            f"dynamic: an image alone is cut by its aspect into {fewest} to {most} tiles of {px} px, "
            f"and behind several comes a thumbnail; {alone}"
        )
    *squares, last = spec.scales
    return (
        f"dynamic_s2: an image alone is shown at {', '.join(map(str, squares))} px and, by its aspect in {fewest} to "
        f"{most} tiles of {px} px, at {last}; features of all scales are joined on the map of scale "
        f"{spec.scales[spec.merge_scale]}; {alone}"
    )


def _video_words(spec: ModelSpec) -> str:
    if spec.video_mode == "images":
        return f"images: each of {spec.num_video_frames} frames is an image of its own"
    levels = [
        f"{frames} frames" + (f" x {rows} x {columns} tokens" if (rows, columns) != (1, 1) else "")
        for frames, rows, columns in spec.video_pools
    ]
    pooling = "nothing is averaged"
    if spec.video_pools != (NO_POOL,):
        pooling = f"the tokens of every {' and again of every '.join(levels)} are averaged into one"
    return f"video encoder, {spec.num_video_frames} frames by default: {pooling}"


def _camera(spec: ModelSpec, width: int, height: int) -> Values:
    fewest, most = tile_range(spec)
    rows, columns = choose_grid(width, height, spec.vision.image_px, fewest, most)
    cost = image_cost(spec, rows * columns)
    return {"width": width, "height": height, "columns": columns, "rows": rows, **asdict(cost)}


def _tokens(tokenizer: ChatTokenizer, spec: ModelSpec | None) -> list[Values]:
    return [
        {
            "name": name,
            "id": idx,
            "is_stop": idx in tokenizer.stop_ids,
            "is_in_table": idx < spec.decoder.vocab_size if spec else None,
        }
        for name, idx in tokenizer.named_ids.items()
    ]
