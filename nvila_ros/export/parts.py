"""Build the ONNX graphs of all parts and write them: vision and projector here, the decoder in `decoder.py`.

Vision and projector are two graphs even where a tile's features pass unchanged from one to the other: with `dynamic_s2`
the features of all scales are merged in between, and one interface of the engine serves all models.

Shapes: N tiles, C channels, H W pixels, P patches, E vision width, G visual tokens, D decoder width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO

import onnx

from nvila_ros.export.decoder import build_decoder
from nvila_ros.export.forms import ORT, GraphForm
from nvila_ros.export.graph import WEIGHTS_FILE, GraphBuilder, pack
from nvila_ros.files import atomic_file, check_utf8, write_atomic, write_json
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.quantized import Weights
from nvila_ros.models.spec import ModelSpec, ProjectorSpec, VisionSpec

ALIGNMENT = 64  # bytes; every weight starts on a cache line


def build_vision(spec: VisionSpec, weights: Weights, form: GraphForm = ORT) -> GraphBuilder:
    """Build the graph from `tile` (N, 3, H, W) to `feat` (N, P, E)."""
    graph = GraphBuilder("vision", form.of("vision"))
    tile = graph.input("tile", ("N", 3, spec.image_px, spec.image_px))
    stem = "vision_tower.vision_model"
    kernel, bias = (graph.plain(f"{stem}.embeddings.patch_embedding.{key}", weights) for key in ("weight", "bias"))
    patches = graph.op("Conv", tile, kernel, bias, strides=[spec.patch_px, spec.patch_px])
    x = graph.transpose(graph.reshape(patches, 0, spec.width, spec.num_patches), 0, 2, 1)
    x = graph.op("Add", x, graph.plain(f"{stem}.embeddings.position_embedding.weight", weights))
    for i in range(spec.num_live_layers):
        x = _vision_layer(graph, spec, weights, f"{stem}.encoder.layers.{i}", x)
    graph.output(x, "feat", ("N", spec.num_patches, spec.width))
    return graph


def _vision_layer(graph: GraphBuilder, spec: VisionSpec, weights: Weights, name: str, x: str) -> str:
    normed = graph.layer_norm(x, f"{name}.layer_norm1", weights, spec.norm_eps)
    x = graph.op("Add", x, _vision_attention(graph, spec, weights, f"{name}.self_attn", normed))
    normed = graph.layer_norm(x, f"{name}.layer_norm2", weights, spec.norm_eps)
    hidden = graph.gelu_tanh(graph.linear(normed, f"{name}.mlp.fc1", weights))
    return graph.op("Add", x, graph.linear(hidden, f"{name}.mlp.fc2", weights))


def _vision_attention(graph: GraphBuilder, spec: VisionSpec, weights: Weights, name: str, x: str) -> str:
    head_size = spec.width // spec.num_heads
    q, k, v = (
        graph.reshape(graph.linear(x, f"{name}.{key}_proj", weights), 0, spec.num_patches, spec.num_heads, head_size)
        for key in "qkv"
    )
    scaled = graph.op("Mul", graph.transpose(q, 0, 2, 1, 3), graph.scalar(head_size**-0.5))
    share = graph.op("Softmax", graph.op("MatMul", scaled, graph.transpose(k, 0, 2, 3, 1)), axis=-1)
    mixed = graph.transpose(graph.op("MatMul", share, graph.transpose(v, 0, 2, 1, 3)), 0, 2, 1, 3)
    return graph.linear(graph.reshape(mixed, 0, spec.num_patches, spec.width), f"{name}.out_proj", weights)


def build_projector(spec: ProjectorSpec, grid: int, weights: Weights, form: GraphForm = ORT) -> GraphBuilder:
    """Build the graph from `feat` (N, P, E) to `visual` (N, G, D)."""
    graph = GraphBuilder("projector", form.of("projector"))
    feat = graph.input("feat", ("N", grid * grid, spec.in_width))
    x = _space_to_depth(graph, feat, grid, spec)
    name = "mm_projector.layers"
    x = graph.linear(graph.layer_norm(x, f"{name}.1", weights, 1e-5), f"{name}.2", weights)
    if spec.kind == "mlp_downsample_3x3_fix":
        x = graph.layer_norm(graph.gelu(x), f"{name}.4", weights, 1e-5)
        x = graph.linear(graph.gelu(graph.linear(x, f"{name}.5", weights)), f"{name}.7", weights)
    else:
        x = graph.linear(graph.gelu(x), f"{name}.4", weights)
    graph.output(x, "visual", ("N", (-(-grid // spec.downsample)) ** 2, spec.out_width))
    return graph


def _space_to_depth(graph: GraphBuilder, feat: str, grid: int, spec: ProjectorSpec) -> str:
    """Zero-pad at the bottom and right, then merge blocks in the order (row in block, column in block, channel)."""
    r, e = spec.downsample, spec.in_width
    pad = -grid % r
    blocks = (grid + pad) // r
    x = graph.reshape(feat, 0, grid, grid, e)
    if pad:
        x = graph.op("Pad", x, graph.ints(0, 0, 0, 0, 0, pad, pad, 0))
    order = (3, 1) if spec.is_column_major else (1, 3)
    x = graph.transpose(graph.reshape(x, -1, blocks, r, blocks, r, e), 0, *order, 2, 4, 5)
    return graph.reshape(x, -1, blocks * blocks, r * r * e)


def build_graphs(spec: ModelSpec, weights: Weights, form: GraphForm = ORT) -> dict[str, GraphBuilder]:
    """Build the graph of every part of a model, by name."""
    return {part: build(form) for part, build in _graph_builders(spec, weights).items()}


def export_parts(checkpoint: Checkpoint, folder: Path) -> list[Path]:
    """Write `vision.onnx`, `projector.onnx`, `decoder.onnx`, one weights file and a manifest; return the paths.

    The manifest is written last; a folder without one is an unfinished export.
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
        forms: each adds its graphs, and to the weights what the forms before it lack.

    Raises:
        ConfigError: a weight cannot be expressed in one of the forms, or a file cannot be written.
    """
    check_utf8(folder.absolute())
    models: dict[str, onnx.ModelProto] = {}
    with atomic_file(folder / WEIGHTS_FILE) as part_file, part_file.open("wb") as file:
        weights_file = WeightsFile(file)
        for form in forms:
            for part, build in _graph_builders(spec, weights).items():
                name = form.file_of(part)
                if name not in models:
                    models[name] = weights_file.finish(build(form))
    return [*(_save(model, folder / name) for name, model in models.items()), folder / WEIGHTS_FILE]


class WeightsFile:
    """A file of weights to which each graph adds what those before it did not have."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._offsets: dict[str, int] = {}

    def finish(self, graph: GraphBuilder) -> onnx.ModelProto:
        """Write what is new of a graph's weights and return the graph."""
        for name, array in graph.weights.items():
            if name not in self._offsets:
                self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
                self._offsets[name] = self._file.tell()
                self._file.write(pack(array).data)
        return graph.finish(self._offsets)


def _graph_builders(spec: ModelSpec, weights: Weights) -> dict[str, Callable[[GraphForm], GraphBuilder]]:
    return {
        "vision": lambda form: build_vision(spec.vision, weights, form),
        "projector": lambda form: build_projector(spec.projector, spec.vision.grid, weights, form),
        "decoder": lambda form: build_decoder(spec.decoder, weights, form),
    }


def _save(model: onnx.ModelProto, path: Path) -> Path:
    write_atomic(path, model.SerializeToString())
    # An older onnx can write the graph, but checks only operators that it knows.
    if model.opset_import[0].version <= onnx.defs.onnx_opset_version():
        onnx.checker.check_model(str(path), full_check=True)
    return path
