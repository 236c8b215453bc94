"""Plans of the embedded model, compiled ahead of time by TensorRT-RTX for GPUs that are not here.

RTX is not what a Jetson runs, but its compiler reads the same graphs and is built from the same parts: a graph that
loses its integer GEMMs or its fused attention here is not likely to keep them there.
"""

import mmap
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvila_ros.errors import BackendError, ConfigError
from nvila_ros.export.forms import TRT_BASE, TRT_KV, GraphForm
from nvila_ros.export.parts import write_parts
from nvila_ros.models.build import open_build
from nvila_ros.models.spec import ModelSpec
from nvila_ros.runtime.tensorrt import api
from nvila_ros.runtime.tensorrt.builder import BuildOptions, Built, Limits, build_plan, part_profiles
from nvila_ros.runtime.tensorrt.compile import CompileJob, compile_plans
from nvila_ros.runtime.tensorrt.lint import find, read_kernels
from nvila_ros.runtime.tensorrt.machine import name_machine
from nvila_ros.runtime.tensorrt.plans import choose_plans, read_records
from nvila_ros.runtime.tensorrt.profile_context import load_plan
from tests.runtime.rounded_build import CHECKPOINT, write_rounded_build

TARGETS = ["SM86", "SM89", "SM120"]
LIMITS = Limits(max_tiles=4, max_chunk=128, capacity=1024)
PREFILL, DECODE = 0, 1
ROOT = Path(__file__).parents[3]
CHILD = """
import os, signal, sys
from pathlib import Path
from nvila_ros.export.forms import TRT_KV
from nvila_ros.runtime.tensorrt.builder import Limits
from nvila_ros.runtime.tensorrt.compile import CompileJob, compile_plans
from nvila_ros.runtime.tensorrt.machine import name_machine

def on_progress(part, phase, share):
    if part == "decoder" and share > 0.5:
        os.kill(os.getpid(), signal.SIGKILL)

trt, machine = name_machine("SM86")
limits = Limits(max_tiles=4, max_chunk=128, capacity=1024)
job = CompileJob(trt=trt, machine=machine, form=TRT_KV, limits=limits, on_progress=on_progress)
compile_plans(Path(sys.argv[1]), job, {})
"""

pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]  # compiles plans


@pytest.fixture(scope="module")
def trt() -> Any:
    try:
        return api.load_api("tensorrt_rtx")
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rounded_build(tmp_path_factory.mktemp("builds") / "rounded")


@pytest.fixture(scope="module")
def graphs(rounded: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    write_parts(CHECKPOINT.spec, open_build(rounded).weights(), folder, [TRT_BASE, TRT_KV])
    return CHECKPOINT.spec, folder


@pytest.mark.parametrize(("target", "form"), [("SM86", TRT_BASE), *((target, TRT_KV) for target in TARGETS)])
def test_build_of_the_embedded_model_compiles_without_a_finding(
    trt: Any, rounded: Path, tmp_path: Path, target: str, form: GraphForm
) -> None:
    folder = Path(shutil.copytree(rounded, tmp_path / "out"))
    _, machine = name_machine(target)

    compile_plans(folder, CompileJob(trt=trt, machine=machine, form=form, limits=LIMITS), {"name": "rounded"})

    plans = choose_plans(open_build(folder), machine)
    assert [plan.findings for plan in plans.values()] == [(), (), ()]
    assert all(plan.machine.architecture == f"sm_{target[2:]}" and plan.limits == LIMITS for plan in plans.values())


def build(trt: Any, graphs: tuple[ModelSpec, Path], part: str, form: GraphForm, target: str) -> Built:
    spec, folder = graphs
    profiles = part_profiles(spec, part, form, LIMITS)
    return build_plan(trt, folder / form.file_of(part), profiles, LIMITS.capacity, BuildOptions(target=target))


@pytest.mark.parametrize("target", TARGETS[:1])
def test_tower_runs_in_int8_with_fused_attention(trt: Any, graphs: tuple[ModelSpec, Path], target: str) -> None:
    layers = graphs[0].vision.num_live_layers

    built = build(trt, graphs, "vision", TRT_BASE, target)

    found = find(read_kernels(built.kernels))
    assert (found.int8_gemms, found.float_gemms, found.attentions) == (4 * layers, 0, layers)
    assert len(built.plan) > 1e5


@pytest.mark.parametrize("target", TARGETS[:1])
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


def test_plan_that_was_cut_off_is_refused_by_name(trt: Any, tmp_path: Path) -> None:
    (tmp_path / "cut.plan").write_bytes(b"ftrt" * 64)
    logger, _ = api.open_log(trt)
    runtime = trt.Runtime(logger)
    rule = r"TensorRT 1\..* cannot load the plan of vision: .*Error.*; build it on this device"
    with (tmp_path / "cut.plan").open("rb") as file:
        plan = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    with pytest.raises(BackendError, match=rule):
        load_plan(trt, runtime, "vision", plan)


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (lambda folder, graph: graph.write_bytes(b"\xff" * 99), "cannot be read as ONNX .*; export it again"),
        (lambda folder, graph: graph.write_bytes(b""), r"cannot be read as ONNX \(it has no nodes\)"),
        (lambda folder, graph: graph.write_bytes(graph.read_bytes()[:-99]), "cannot be read as ONNX|cannot read"),
        (lambda folder, graph: graph.unlink(), "cannot be read as ONNX .*No such file"),
        (lambda folder, graph: (folder / "weights.bin").unlink(), "cannot read projector"),
        (lambda folder, graph: truncate(folder / "weights.bin"), "cannot read projector"),
    ],
)
def test_damaged_graph_is_refused_by_name(
    trt: Any, graphs: tuple[ModelSpec, Path], tmp_path: Path, damage: Callable[[Path, Path], object], rule: str
) -> None:
    spec, folder = graphs[0], Path(shutil.copytree(graphs[1], tmp_path / "graphs"))
    graph = folder / TRT_BASE.file_of("projector")
    damage(folder, graph)

    with pytest.raises(BackendError, match=rule):
        build_plan(trt, graph, part_profiles(spec, "projector", TRT_BASE, LIMITS), options=BuildOptions(target="SM86"))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 8])


def test_build_killed_while_tensorrt_compiles_goes_on(trt: Any, rounded: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(rounded, tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", CHILD, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [record.part for record in read_records(open_build(folder))] == ["vision", "projector"]
    _, machine = name_machine("SM86")

    plans = compile_plans(folder, CompileJob(trt=trt, machine=machine, form=TRT_KV, limits=LIMITS), {})

    assert plans == choose_plans(open_build(folder), machine)


def test_target_that_rtx_does_not_know_is_refused(trt: Any, graphs: tuple[ModelSpec, Path]) -> None:
    with pytest.raises(BackendError, match=r"runs on no GPU 'SM87', only on \['SM120'"):
        build(trt, graphs, "projector", TRT_BASE, "SM87")


def test_progress_is_told_and_can_end_the_build(trt: Any, graphs: tuple[ModelSpec, Path]) -> None:
    spec, folder = graphs
    told = []

    def stop(phase: str, share: float) -> None:
        told.append((phase, share))
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


def test_progress_goes_from_none_to_nearly_all_and_never_back(trt: Any, graphs: tuple[ModelSpec, Path]) -> None:
    spec, folder = graphs
    told: list[float] = []

    build_plan(
        trt,
        folder / TRT_BASE.file_of("projector"),
        part_profiles(spec, "projector", TRT_BASE, LIMITS),
        options=BuildOptions(target="SM86"),
        on_progress=lambda phase, share: told.append(share),
    )

    assert told == sorted(told)
    assert told[0] < 0.2
    assert 0.8 < told[-1] <= 1


def test_chunk_that_fills_the_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"a chunk shorter than the cache, got 8, 512, 16 and 512"):
        Limits(capacity=512)
