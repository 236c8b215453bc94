"""The parts as ONNX graphs and as files: vision and projector here, the decoder beside.

Vision and projector stay two graphs also where a tile's features go straight from one to the other: with `dynamic_s2`
the features of all scales are merged in between, and so every model takes one road, and the engine's seam is one.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, G visual tokens, D decoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import onnx

from nvila_ros.export.decoder import draw_decoder
from nvila_ros.export.graph import ORT, WEIGHTS_FILE, GraphBuilder, GraphForm, Weights, pack
from nvila_ros.files import atomic_file, write_atomic, write_json
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.spec import ModelSpec, ProjectorSpec, VisionSpec

ALIGNMENT = 64  # bytes; every weight starts on a cache line


def draw_vision(spec: VisionSpec, weights: Weights, form: GraphForm = ORT) -> GraphBuilder:
    """Draw `tile` (N, 3, H, W) to `feat` (N, P, E)."""
    pen = GraphBuilder("vision", form.of("vision"))
    tile = pen.input("tile", ("N", 3, spec.image_px, spec.image_px))
    stem = "vision_tower.vision_model"
    kernel, bias = (pen.plain(f"{stem}.embeddings.patch_embedding.{key}", weights) for key in ("weight", "bias"))
    patches = pen.op("Conv", tile, kernel, bias, strides=[spec.patch_px, spec.patch_px])
    x = pen.transpose(pen.reshape(patches, 0, spec.width, spec.num_patches), 0, 2, 1)
    x = pen.op("Add", x, pen.plain(f"{stem}.embeddings.position_embedding.weight", weights))
    for i in range(spec.num_live_layers):
        x = _vision_layer(pen, spec, weights, f"{stem}.encoder.layers.{i}", x)
    pen.output(x, "feat", ("N", spec.num_patches, spec.width))
    return pen


def _vision_layer(pen: GraphBuilder, spec: VisionSpec, weights: Weights, name: str, x: str) -> str:
    normed = pen.layer_norm(x, f"{name}.layer_norm1", weights, spec.norm_eps)
    x = pen.op("Add", x, _vision_attention(pen, spec, weights, f"{name}.self_attn", normed))
    normed = pen.layer_norm(x, f"{name}.layer_norm2", weights, spec.norm_eps)
    hidden = pen.gelu_tanh(pen.linear(normed, f"{name}.mlp.fc1", weights))
    return pen.op("Add", x, pen.linear(hidden, f"{name}.mlp.fc2", weights))


def _vision_attention(pen: GraphBuilder, spec: VisionSpec, weights: Weights, name: str, x: str) -> str:
    head_size = spec.width // spec.num_heads
    q, k, v = (
        pen.reshape(pen.linear(x, f"{name}.{key}_proj", weights), 0, spec.num_patches, spec.num_heads, head_size)
        for key in "qkv"
    )
    scaled = pen.op("Mul", pen.transpose(q, 0, 2, 1, 3), pen.scalar(head_size**-0.5))
    share = pen.op("Softmax", pen.op("MatMul", scaled, pen.transpose(k, 0, 2, 3, 1)), axis=-1)
    mixed = pen.transpose(pen.op("MatMul", share, pen.transpose(v, 0, 2, 1, 3)), 0, 2, 1, 3)
    return pen.linear(pen.reshape(mixed, 0, spec.num_patches, spec.width), f"{name}.out_proj", weights)


def draw_projector(spec: ProjectorSpec, grid: int, weights: Weights, form: GraphForm = ORT) -> GraphBuilder:
    """Draw `feat` (N, P, E) to `visual` (N, G, D)."""
    pen = GraphBuilder("projector", form.of("projector"))
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


def _space_to_depth(pen: GraphBuilder, feat: str, grid: int, r: int, e: int) -> str:
    """Zero-pad at the bottom and right, then merge blocks in the order (row in block, column in block, channel)."""
    pad = -grid % r
    blocks = (grid + pad) // r
    x = pen.reshape(feat, 0, grid, grid, e)
    if pad:
        x = pen.op("Pad", x, pen.ints(0, 0, 0, 0, 0, pad, pad, 0))
    x = pen.transpose(pen.reshape(x, -1, blocks, r, blocks, r, e), 0, 1, 3, 2, 4, 5)
    return pen.reshape(x, -1, blocks * blocks, r * r * e)


def draw_parts(spec: ModelSpec, weights: Weights, form: GraphForm = ORT) -> dict[str, GraphBuilder]:
    """Draw every part of a model, by name."""
    return {part: draw(form) for part, draw in _drawers(spec, weights).items()}


def export_parts(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    """Write `vision.onnx`, `projector.onnx`, `decoder.onnx`, one weights file and a manifest; return the paths.

    The manifest is written last, so a folder without one is an export that did not finish.
    """
    paths = write_parts(checkpoint.spec, checkpoint.weights(), folder)
    names = [path.name for path in paths if path.suffix == ".onnx"]
    manifest = {"model": checkpoint.spec.name, "precision": "fp32", "parts": names}
    write_json(folder / "manifest.json", manifest)
    return [*paths, folder / "manifest.json"]


def write_parts(spec: ModelSpec, weights: Weights, folder: Path, forms: Iterable[GraphForm] = (ORT,)) -> list[Path]:
    """Write the graphs of every form and one weights file that all of them read; return the paths, weights last.

    Args:
        spec: the model.
        weights: arrays or quantized weights, by `part.key`.
        folder: made where it is missing; files of the same names are replaced.
        forms: each adds its graphs, and to the weights only what no form before it has.

    Raises:
        ConfigError: a weight cannot be expressed in one of the forms, or a file cannot be written.
    """
    models: dict[str, onnx.ModelProto] = {}
    with atomic_file(folder / WEIGHTS_FILE) as part_file, part_file.open("wb") as file:
        weights_file = WeightsFile(file)
        for form in forms:
            for part, draw in _drawers(spec, weights).items():
                name = form.file_of(part)
                if name not in models:
                    models[name] = weights_file.finish(draw(form))
    return [*(_save(model, folder / name) for name, model in models.items()), folder / WEIGHTS_FILE]


class WeightsFile:
    """A file of weights to which each graph adds what those before it did not have."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._offsets: dict[str, int] = {}

    def finish(self, pen: GraphBuilder) -> onnx.ModelProto:
        """Write what is new of a graph's weights and return the graph."""
        for name, array in pen.weights.items():
            if name not in self._offsets:
                self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
                self._offsets[name] = self._file.tell()
                self._file.write(pack(array).data)
        return pen.finish(self._offsets)


def _drawers(spec: ModelSpec, weights: Weights) -> dict[str, Callable[[GraphForm], GraphBuilder]]:
    return {
        "vision": lambda form: draw_vision(spec.vision, weights, form),
        "projector": lambda form: draw_projector(spec.projector, spec.vision.grid, weights, form),
        "decoder": lambda form: draw_decoder(spec.decoder, weights, form),
    }


def _save(model: onnx.ModelProto, path: Path) -> Path:
    write_atomic(path, model.SerializeToString())
    # Writing needs no more of onnx than its messages; checking needs to know every operator.
    if model.opset_import[0].version <= onnx.defs.onnx_opset_version():
        onnx.checker.check_model(str(path), full_check=True)
    return path
