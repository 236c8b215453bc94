"""From a sealed build over plans to answers, on a device made of this machine's memory; and what is refused before.

The checks are those of the GPU's suite, so that it is known to be right before a GPU runs it.
"""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from nvila_ros.errors import BackendError, CheckpointError
from nvila_ros.export.forms import TRT_BASE, TRT_KV, GraphForm
from nvila_ros.models.build import digest_file, open_build
from nvila_ros.runtime.loading import load_engine
from nvila_ros.runtime.tensorrt import compile as tensorrt_compile
from nvila_ros.runtime.tensorrt import engine as tensorrt_engine
from nvila_ros.runtime.tensorrt.builder import Limits, part_profiles
from nvila_ros.runtime.tensorrt.compile import CompileJob, compile_plans
from nvila_ros.runtime.tensorrt.cuda import Cuda
from nvila_ros.runtime.tensorrt.engine import TensorRtEngine
from nvila_ros.runtime.tensorrt.plans import PARTS, choose_plans
from nvila_ros.serving.pipeline import load_model
from tests.export.test_forms import needs_opset_24
from tests.gpu import checks
from tests.runtime.rounded_build import CHECKPOINT, write_rounded_build
from tests.runtime.tensorrt.fake_build import MACHINE, FakeBuilder, raise_if_loaded
from tests.runtime.tensorrt.fake_tensorrt import FakeCudart, fake_tensorrt

pytestmark = pytest.mark.slow  # compiles plans

ROOT = Path(__file__).parents[3]
LIMITS = Limits(max_tiles=2, max_chunk=64, max_rows=4, capacity=512)
FORMS = [pytest.param(TRT_BASE, id="trt_base"), pytest.param(TRT_KV, id="trt_kv", marks=needs_opset_24)]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def compile_fake(folder: Path, form: GraphForm, monkeypatch: pytest.MonkeyPatch, store: Path) -> FakeBuilder:
    """Compile a build by a stand-in, and let the engine find a stand-in of the GPU."""
    builder, cudart = FakeBuilder(store), FakeCudart()
    monkeypatch.setattr(tensorrt_compile, "build_plan", builder)
    compile_plans(folder, CompileJob(trt=None, machine=MACHINE, form=form, limits=LIMITS), {"name": "rounded"})
    trt = fake_tensorrt({part: part_profiles(CHECKPOINT.spec, part, form, LIMITS) for part in PARTS}, cudart)
    monkeypatch.setattr(tensorrt_engine, "find_machine", lambda flavours: (trt, MACHINE, Cuda(cudart)))
    return builder


@pytest.fixture(scope="module", params=[True, False], ids=["fp16", "w8a8+w4a16"])
def weights(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rounded_build(tmp_path_factory.mktemp("builds") / "rounded", is_float=request.param)


@pytest.fixture(params=FORMS)
def built(request: Any, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = Path(shutil.copytree(weights, tmp_path / "out"))
    compile_fake(folder, request.param, monkeypatch, tmp_path / "store")
    return folder


def load(folder: Path) -> TensorRtEngine:
    loaded = load_engine(open_build(folder), "tensorrt")
    assert isinstance(loaded, TensorRtEngine)
    return loaded


def test_build_loads_and_computes_what_torch_does(built: Path) -> None:
    engine = load(built)

    checks.check_parts(engine, load_engine(open_build(built), "torch"))
    checks.check_best(engine)
    checks.check_copied_prefix(engine)
    checks.check_branches(engine)
    if engine.use_graphs:
        checks.check_graphs(engine)
        assert checks.step_ms(engine, True, 5) > 0


def test_prompt_beyond_the_plans_is_refused_like_one_beyond_the_model(built: Path) -> None:
    assert load(built).spec.decoder.max_positions == LIMITS.capacity


@needs_opset_24
def test_answers_are_those_of_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_rounded_build(tmp_path / "out", is_float=True)
    compile_fake(folder, TRT_KV, monkeypatch, tmp_path / "store")
    monkeypatch.setattr(checks, "NUM_QUESTIONS", 6)

    checks.check_answers(*(load_model(str(folder), backend=name) for name in ("tensorrt", "torch")), least=6)


@pytest.mark.slow
def test_suite_of_the_gpu_runs_on_the_stand_in() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/gpu",
        "-k",
        "fp16",
        "-p",
        "tests.runtime.tensorrt.fake_device",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert re.search(r"\n\d passed, \d deselected in", done.stdout), done.stdout


@pytest.fixture
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build with plans, which no test of what follows may load."""
    folder = write_rounded_build(tmp_path / "out")
    compile_fake(folder, TRT_BASE, monkeypatch, tmp_path / "store")
    monkeypatch.setattr(tensorrt_engine, "load_plan", raise_if_loaded)
    return folder


def find(folder: Path, part: str, suffix: str) -> Path:
    (path,) = (folder / "plans").glob(f"{part}.*{suffix}")
    return path


def change(folder: Path, part: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit what the manifest says of one plan."""
    path = folder / "manifest.json"
    told = json.loads(path.read_text())
    edit(next(plan for plan in told["plans"] if plan["part"] == part))
    path.write_text(json.dumps(told))


def forge(folder: Path, part: str) -> None:
    """Let manifest and names say of a graph that was changed that it is what was compiled."""
    seal = digest_file(find(folder, part, "onnx"))
    plan = find(folder, part, "plan")
    named = plan.with_name(f"{plan.name.removesuffix('.plan').rpartition('.')[0]}.{seal['sha256'][:12]}.plan")
    plan.rename(named)
    change(folder, part, lambda told: told.update(onnx_seal=seal, file=f"plans/{named.name}"))


def truncate(folder: Path) -> None:
    path = find(folder, "decoder", "plan")
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path) -> None:
    path = find(folder, "vision", "plan")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def spoil_graph(folder: Path) -> None:
    find(folder, "decoder", "onnx").write_bytes(b"\xff" * 64)
    forge(folder, "decoder")


def take_graph_of_other_weights(folder: Path) -> None:
    path = find(folder, "projector", "onnx")
    model = onnx.load(path, load_external_data=False)
    next(entry for entry in model.metadata_props if entry.key == "weights_sha256").value = "0" * 64
    onnx.save(model, path)
    forge(folder, "projector")


def take_graph_of_other_inputs(folder: Path) -> None:
    path = find(folder, "decoder", "onnx")
    model = onnx.load(path, load_external_data=False)
    next(value for value in model.graph.input if value.name == "rows").name = "columns"
    onnx.save(model, path)
    forge(folder, "decoder")


def of(part: str, /, **values: object) -> Callable[[Path], None]:
    return lambda folder: change(folder, part, lambda plan: plan.update(values))


def of_machine(**values: object) -> Callable[[Path], None]:
    told = dataclasses.asdict(MACHINE) | values
    return of("decoder", machine=told)


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (
            of_machine(architecture="sm_89"),
            r"plans of decoder for tensorrt 0.0 on sm_89.*, this is tensorrt 0.0 on sm_87",
        ),
        (of_machine(version="10.3.0"), r"for tensorrt 10.3.0 on sm_87.*, this is tensorrt 0.0 on sm_87"),
        (of_machine(flavour="tensorrt_rtx"), r"for tensorrt_rtx 0.0 on sm_87.*, this is tensorrt 0.0"),
        (of_machine(num_sms=8), r"on sm_87 of 8 multiprocessors, this is .* of 16 multiprocessors"),
        (truncate, r"decoder.*plan is not the file that was built: it was truncated or changed"),
        (flip, r"vision.*plan is not the file that was built"),
        (lambda folder: find(folder, "vision", "plan").unlink(), r"vision.*plan is missing"),
        (lambda folder: find(folder, "vision", "onnx").unlink(), r"vision.*onnx is missing"),
        (of("vision", onnx_seal={"bytes": 1, "sha256": ""}), r"vision.*onnx is not the file that was built"),
        (spoil_graph, r"decoder.*onnx cannot be read as ONNX"),
        (of("vision", file="../vision.plan"), r"names a file outside of its folder, '../vision.plan'"),
        (take_graph_of_other_weights, r"projector.*plan was compiled from other weights than those of"),
        (take_graph_of_other_inputs, r"decoder.*plan differs from this engine in its inputs \['columns', 'rows'\]"),
        (of("decoder", limits=dataclasses.asdict(Limits())), r"plans of .* are for several limits or forms"),
        (of("decoder", limits=7), r"does not describe its plans"),
        (of("decoder", form="sideways"), r"does not describe its plans \(KeyError\('sideways'\)\)"),
        (of("decoder", part="wheel"), r"has plans of decoder for none, this is"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_before_it_is_loaded(
    sealed: Path, damage: Callable[[Path], None], rule: str
) -> None:
    damage(sealed)

    with pytest.raises((BackendError, CheckpointError), match=rule) as told:
        load(sealed)

    assert f"compile it on this machine with: nvila build {sealed}" in str(told.value)


def test_plan_named_after_another_graph_is_refused(sealed: Path) -> None:
    path = find(sealed, "projector", "onnx")
    path.write_bytes(path.read_bytes() + b"\x32\x00")  # one more empty field: still ONNX, and another digest
    change(sealed, "projector", lambda plan: plan.update(onnx_seal=digest_file(path)))

    with pytest.raises(BackendError, match=r"projector.*plan is the plan of another graph than plans/projector"):
        load(sealed)


def test_damaged_plans_leave_other_backends_alone(sealed: Path) -> None:
    for path in (sealed / "plans").iterdir():
        path.write_bytes(b"")

    assert load_engine(open_build(sealed), "onnxruntime", threads=1).precision == "w8a8+w4a16"


def test_checkpoints_and_builds_without_plans_are_told_what_to_do(tmp_path: Path) -> None:
    folder = write_rounded_build(tmp_path / "out")

    with pytest.raises(BackendError, match=r"tensorrt runs builds, got a checkpoint; .* nvila build RECIPE"):
        load_engine(CHECKPOINT, "tensorrt")
    with pytest.raises(BackendError, match=r"has no plans; compile it on this machine with: nvila build "):
        load_engine(open_build(folder), "tensorrt")


def test_plans_choose_themselves_by_machine(sealed: Path) -> None:
    plans = choose_plans(open_build(sealed), MACHINE)

    assert list(plans) == list(PARTS)
    for part, plan in plans.items():
        assert plan.file.startswith(f"plans/{part}.tensorrt-0.0.sm_87x16.{plan.onnx_digest['sha256'][:12]}")
