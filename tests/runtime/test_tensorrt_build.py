"""Plans of the embedded model, compiled ahead of time by TensorRT-RTX for GPUs that are not here.

RTX is not what a Jetson runs, but its compiler reads the same graphs and is built from the same parts: a graph that
loses its integer GEMMs or its fused attention here is not likely to keep them there.
"""

from pathlib import Path
from typing import Any

import pytest

from nvila_ros.errors import BackendError, ConfigError
from nvila_ros.export.graph import TRT_BASE, TRT_KV, GraphForm
from nvila_ros.export.parts import write_parts
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.quantized import Weight
from nvila_ros.models.spec import ModelSpec
from nvila_ros.runtime import tensorrt_api as api
from nvila_ros.runtime.tensorrt_builder import BuildOptions, Built, Limits, build_plan, part_profiles
from nvila_ros.runtime.tensorrt_lint import find, read_kernels
from tests.export.random_models import round_int4, round_int8

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "nvila-tiny"
TARGETS = ["SM86", "SM89", "SM120"]
LIMITS = Limits(max_tiles=4, max_chunk=128, capacity=1024)
PREFILL, DECODE = 0, 1

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def trt() -> Any:
    try:
        return api.load_api("tensorrt_rtx")
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, Path]:
    """The embedded model, its tower in eight bits and its decoder in four, rounded to nearest."""
    checkpoint = open_checkpoint(CHECKPOINT)
    weights: dict[str, Weight] = dict(checkpoint.weights())
    for key, array in checkpoint.weights().items():
        if "encoder.layers" in key and array.ndim == 2:
            weights[key] = round_int8(array, 0.05)
        elif key.startswith("llm.") and "_proj" in key and array.ndim == 2:
            weights[key] = round_int4(array, 128)
    weights["llm.lm_head.weight"] = round_int4(weights["llm.model.embed_tokens.weight"], 128)
    folder = tmp_path_factory.mktemp("graphs")
    write_parts(checkpoint.spec, weights, folder, [TRT_BASE, TRT_KV])
    return checkpoint.spec, folder


def build(trt: Any, graphs: tuple[ModelSpec, Path], part: str, form: GraphForm, target: str) -> Built:
    spec, folder = graphs
    profiles = part_profiles(spec, part, form, LIMITS)
    return build_plan(trt, folder / form.file_of(part), profiles, LIMITS.capacity, BuildOptions(target=target))


@pytest.mark.parametrize("target", TARGETS)
def test_tower_runs_in_int8_with_fused_attention(trt: Any, graphs: tuple[ModelSpec, Path], target: str) -> None:
    layers = graphs[0].vision.num_live_layers

    built = build(trt, graphs, "vision", TRT_BASE, target)

    found = find(read_kernels(built.kernels))
    assert (found.int8_gemms, found.float_gemms, found.attentions) == (4 * layers, 0, layers)
    assert len(built.plan) > 1e5


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("form", [TRT_BASE, TRT_KV], ids=["trt_base", "trt_kv"])
def test_decoder_reads_four_bits_and_a_cache_in_place(
    trt: Any, graphs: tuple[ModelSpec, Path], form: GraphForm, target: str
) -> None:
    spec = graphs[0].decoder

    built = build(trt, graphs, "decoder", form, target)

    kernels = read_kernels(built.kernels)
    for profile in (PREFILL, DECODE):
        found = find(kernels, profile, spec.num_kv_heads, spec.head_size)
        assert (found.int4_gemms, found.unpacked_int4, found.float_gemms) == (4 * spec.num_layers + 1, 0, 0)
        assert found.attentions == spec.num_layers
        if form == TRT_BASE or profile == DECODE:
            assert found.expanded_kv == 0
        if form == TRT_KV and profile == DECODE:
            assert found.copied_kv == 0


def test_graph_that_cannot_be_read_is_told_in_the_parsers_words(trt: Any, graphs: tuple[ModelSpec, Path]) -> None:
    spec, folder = graphs
    graph = folder / TRT_KV.file_of("decoder")

    with pytest.raises(BackendError, match=r"(?s)cannot read decoder.*must have a static sequence length"):
        build_plan(trt, graph, part_profiles(spec, "decoder", TRT_KV, LIMITS))


def test_build_that_fails_is_told_in_the_builders_words(trt: Any, graphs: tuple[ModelSpec, Path]) -> None:
    graph = graphs[1] / TRT_BASE.file_of("projector")

    with pytest.raises(BackendError, match=r"cannot build projector.*no optimization profile"):
        build_plan(trt, graph, [], options=BuildOptions(target="SM86"))


def test_target_that_rtx_does_not_know_is_refused(trt: Any, graphs: tuple[ModelSpec, Path]) -> None:
    with pytest.raises(BackendError, match=r"unknown target 'SM87'; known are \['SM120'"):
        build(trt, graphs, "projector", TRT_BASE, "SM87")


def test_progress_is_told_and_can_end_the_build(trt: Any, graphs: tuple[ModelSpec, Path]) -> None:
    spec, folder = graphs
    told = []

    def stop(phase: str, step: int, num_steps: int) -> None:
        told.append((phase, step, num_steps))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        build_plan(
            trt,
            folder / TRT_BASE.file_of("projector"),
            part_profiles(spec, "projector", TRT_BASE, LIMITS),
            options=BuildOptions(target="SM86"),
            on_progress=stop,
        )
    assert told


def test_chunk_that_fills_the_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a chunk shorter than the cache, got 8, 512 and 512"):
        Limits(capacity=512)
