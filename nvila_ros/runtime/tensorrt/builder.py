"""Build a TensorRT plan from one exported graph: parse, add profiles, compile, and keep the builder's messages.

The network is strongly typed, so nothing is quantized or widened here. The list of the plan's kernels is part of the
result: `lint` checks in it that the graph was compiled as intended.

Shapes: N tiles, P patches, E vision width, L tokens in this call, R of them whose logits are wanted, T past tokens, M
tokens of the cache, D decoder width, K kv heads, S head size.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from nvila_ros.errors import BackendError, ConfigError
from nvila_ros.export.forms import GraphForm
from nvila_ros.models.spec import DecoderSpec, ModelSpec
from nvila_ros.runtime.tensorrt import api

PREFILL, DECODE = 0, 1
"""Indices of the decoder's profiles."""
DECODE_ROWS = 2
"""With a single row TensorRT-RTX stores the head in a second layout beside that for prompts: 0.47 GB of a 2B model."""
Shape = tuple[int, ...]
Profile = Mapping[str, tuple[Shape, Shape, Shape]]
"""Least, usual and largest shape of each input of variable shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest inputs of an engine.

    Attributes:
        max_tiles: tiles in one call of the vision tower and the projector; more are split by the caller.
        max_chunk: tokens in one call of the decoder; longer prompts are split by the caller.
        max_rows: tokens of a chunk whose logits are returned; more are split by the caller.
        capacity: tokens of the cache.
    """

    max_tiles: int = 8
    max_chunk: int = 512
    max_rows: int = 16
    capacity: int = 4096

    def __post_init__(self) -> None:
        """Check that a chunk fits the cache."""
        if min(self.max_tiles, self.max_chunk, self.max_rows) < 1 or self.max_chunk >= self.capacity:
            raise ConfigError(
                "max_tiles, max_chunk and max_rows must be >= 1 and a chunk shorter than the cache, got "
                f"{self.max_tiles}, {self.max_chunk}, {self.max_rows} and {self.capacity}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """How to build.

    Attributes:
        target: GPU to compile for by RTX's name, such as `SM86`; empty is that of this machine.
        workspace_bytes: limit of one layer beside weights and activations; 0 keeps TensorRT's.
        timings: of an earlier build on the same GPU and version, or empty.
    """

    target: str = ""
    workspace_bytes: int = 0
    timings: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A plan and the record of its build.

    Attributes:
        plan: for this version of TensorRT and this kind of GPU alone. Not copied, since it is large.
        kernels: the builder's description of each kernel, one line each.
        warnings: of the builder.
        timings: for the next build's options.
        build_s: seconds of parsing and compiling.
    """

    plan: memoryview
    kernels: tuple[str, ...]
    warnings: tuple[str, ...]
    timings: bytes
    build_s: float


def part_profiles(spec: ModelSpec, part: str, form: GraphForm, limits: Limits) -> list[Profile]:
    """Return the profiles of a part: one, or for the decoder prefill and decode, which share the weights."""
    if part != "decoder":
        vision, tiles = spec.vision, (1, min(4, limits.max_tiles), limits.max_tiles)
        if part == "vision":
            return [{"tile": _each(tiles, lambda n: (n, 3, vision.image_px, vision.image_px))}]
        return [{"feat": _each(tiles, lambda n: (n, vision.num_patches, spec.projector.in_width))}]
    last = limits.capacity - 1
    chunk, one = (1, limits.max_chunk, limits.max_chunk), (1, 1, 1)
    # A short chunk may follow a long past; the longest of both never occur together.
    past_by_profile = [(0, 0, last), (1, limits.capacity // 2, last)]
    wanted = [{"rows": _each((1, 1, most), lambda n: (n,))} for most in (limits.max_rows, DECODE_ROWS)]
    if form.decoder == "in_place":
        caches = [_in_place_profile(spec.decoder, tokens, limits.capacity) for tokens in (chunk, one)]
    else:
        caches = [_append_profile(spec.decoder, *both) for both in zip((chunk, one), past_by_profile, strict=True)]
    return [{**cache, **rows} for cache, rows in zip(caches, wanted, strict=True)]


def build_plan(
    trt: Any,
    graph: Path,
    profiles: Sequence[Profile],
    capacity: int = 0,
    options: BuildOptions = BuildOptions(),
    on_progress: api.OnProgress | None = None,
) -> Built:
    """Build a plan.

    Args:
        trt: from `api.load_api`.
        graph: an exported graph, beside its weights.
        profiles: from `part_profiles`.
        capacity: tokens of a cache in place, whose size is fixed in the plan; of no effect on other graphs.
        options: how to build.
        on_progress: called with the progress; an exception from it ends the build and is raised here.

    Raises:
        BackendError: TensorRT refuses the graph or fails to compile it; the message has its reason.
    """
    started = time.perf_counter()
    logger, log = api.open_log(trt)
    builder = trt.Builder(logger)
    network = api.create_network(trt, builder)
    _parse(trt, network, logger, graph, capacity)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # else the list of kernels is only names
    api.set_target(trt, config, options.target)
    api.limit_workspace(trt, config, options.workspace_bytes)
    api.use_timings(config, options.timings)
    for shapes in profiles:
        profile = builder.create_optimization_profile()
        for name, (least, usual, largest) in shapes.items():
            profile.set_shape(name, least, usual, largest)
        config.add_optimization_profile(profile)
    monitor = api.make_monitor(trt, on_progress) if on_progress else None
    if monitor:
        config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor and monitor.error:
        raise monitor.error
    if plan is None:
        raise BackendError(f"TensorRT {trt.__version__} cannot build {graph.name}: {api.last_error(trt)}")
    return Built(
        plan=memoryview(plan),
        kernels=tuple(log.kernels),
        warnings=tuple(log.warnings),
        timings=api.read_timings(config),
        build_s=time.perf_counter() - started,
    )


def load_graph(path: Path, how: str) -> onnx.ModelProto:
    """Return a graph without its weights; `how` is the remedy for a damaged one.

    Raises:
        BackendError: it is missing or not ONNX.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own exceptions have no common kind
        raise BackendError(f"{path} cannot be read as ONNX ({error}); {how}") from error
    if not model.graph.node:  # protobuf parses some bytes that are no graph as an empty one
        raise BackendError(f"{path} cannot be read as ONNX (it has no nodes); {how}")
    return model


def _parse(trt: Any, network: Any, logger: Any, graph: Path, capacity: int) -> None:
    model = load_graph(graph, "export it again")
    if capacity:
        _fix_capacity(model, capacity)
    parser = trt.OnnxParser(network, logger)
    # The parser finds the weights beside this path.
    if not parser.parse(model.SerializeToString(), str(graph)):
        found = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        why = found[-1].strip() if found else api.last_error(trt)
        raise BackendError(f"TensorRT {trt.__version__} cannot read {graph.name}: {why}")


def _fix_capacity(model: onnx.ModelProto, capacity: int) -> None:
    """Set the cache's size, which TensorRT must know when it parses, in a graph whose cache is in place."""
    if not any(node.op_type == "TensorScatter" for node in model.graph.node):
        return
    for value in [*model.graph.input, *model.graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == "M":
                dim.dim_value = capacity


def _append_profile(spec: DecoderSpec, tokens: Shape, past: Shape) -> Profile:
    """Return shapes for `tokens` and `past`, each least, usual and largest."""
    s, num_kv = spec.head_size, spec.num_kv_heads
    mask = [(new, new + old) for new, old in zip(tokens, past, strict=True)]
    return {
        "embeds": _each(tokens, lambda n: (n, spec.width)),
        "cos": _each(tokens, lambda n: (n, s)),
        "sin": _each(tokens, lambda n: (n, s)),
        "mask": (mask[0], mask[1], mask[2]),
        **{f"past_{key}_{i}": _each(past, lambda n: (n, num_kv, s)) for key in "kv" for i in range(spec.num_layers)},
    }


def _in_place_profile(spec: DecoderSpec, tokens: Shape, capacity: int) -> Profile:
    return {
        "embeds": _each(tokens, lambda n: (n, spec.width)),
        "cos": _each(tokens, lambda n: (1, n, spec.head_size // 2)),
        "sin": _each(tokens, lambda n: (1, n, spec.head_size // 2)),
        "mask": _each(tokens, lambda n: (n, capacity)),
    }


def _each(sizes: Shape, shape_of: Any) -> tuple[Shape, Shape, Shape]:
    least, usual, largest = (shape_of(size) for size in sizes)
    return least, usual, largest
