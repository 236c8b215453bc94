"""Plans beside weights: built once, part by part, and nothing that a killed build leaves is taken for whole."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nvila_ros.errors import BackendError, CheckpointError, ConfigError
from nvila_ros.export.forms import TRT_BASE
from nvila_ros.models.build import open_build
from nvila_ros.models.variants import VARIANTS
from nvila_ros.runtime.limits import EngineLimits
from nvila_ros.runtime.tensorrt import compile as tensorrt_compile
from nvila_ros.runtime.tensorrt.builder import Limits
from nvila_ros.runtime.tensorrt.compile import compile_plans, limits_of
from nvila_ros.runtime.tensorrt.plans import PARTS, choose_plans, read_records
from nvila_ros.runtime.tensorrt.timings import read_timings, write_timings
from tests.runtime.rounded_build import CHECKPOINT, write_rounded_build
from tests.runtime.tensorrt.fake_build import JOB, MACHINE, FakeBuilder

pytestmark = pytest.mark.slow  # compiles plans

ROOT = Path(__file__).parents[3]
LIMITS = JOB.limits
GRAPHS = [TRT_BASE.file_of(part) for part in PARTS]
CHILD = """
import dataclasses, itertools, os, signal, sys
from pathlib import Path
from nvila_ros.runtime.tensorrt import compile as tensorrt_compile
from tests.runtime.tensorrt.fake_build import JOB, FakeBuilder

folder, store, point = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
puts = itertools.count()

def reach(name):
    if name == point:
        os.kill(os.getpid(), signal.SIGKILL)

def name_put(path):
    is_counted = path.parent.name != "staging" and path.suffix != ".timings"
    return f"put {next(puts)}" if is_counted else "put another"

def announce(module, attribute, name):
    call = getattr(module, attribute)
    def announced(*args):
        reach(name(*args))
        return call(*args)
    setattr(module, attribute, announced)

announce(tensorrt_compile, "_mark", lambda path, *_: f"drawn {path.name}")
announce(os, "replace", lambda part, path: name_put(path))
announce(Path, "unlink", lambda path: f"unlink {path.name}")
tensorrt_compile.build_plan = FakeBuilder(store)
job = dataclasses.replace(JOB, on_progress=lambda part, phase, share: reach(f"{part} {share}"))
print("started", flush=True)
tensorrt_compile.compile_plans(folder, job, {"name": "rounded"})
"""
POINTS = {
    "drawn decoder.float16.onnx": [],  # graphs and their weights lie in the staging folder
    "vision 0.5": [],
    "put 1": [],  # the first plan's graph is in place, the plan is not
    "put 2": [],  # the first plan is in place, its manifest is not
    "projector 0.5": ["vision"],
    "put 8": ["vision", "projector"],
}
"""Where a build is killed, and what is finished then; `put` counts files that are about to be put in place."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_rounded_build(tmp_path / "out")


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeBuilder:
    builder = FakeBuilder(tmp_path / "store")
    monkeypatch.setattr(tensorrt_compile, "build_plan", builder)
    return builder


def kill_at(point: str, folder: Path, store: Path) -> None:
    """Compile in a child that is killed at a point of its work."""
    command = [sys.executable, "-c", CHILD, str(folder), str(store), point]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "started\n"), done.stderr


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("point", POINTS)
def test_killed_build_has_no_plans_that_load_and_goes_on_where_it_was(
    folder: Path, builder: FakeBuilder, tmp_path: Path, point: str
) -> None:
    kill_at(point, folder, tmp_path / "child")

    build = open_build(folder)  # what was sealed before is whole
    finished = [record.part for record in read_records(build)]
    assert finished == POINTS[point]
    with pytest.raises(BackendError, match=f"{build.path} has plans of .* for none, this is tensorrt 0.0"):
        choose_plans(build, MACHINE)

    compile_plans(folder, JOB, {"name": "rounded"})

    assert builder.built == [name for name, part in zip(GRAPHS, PARTS, strict=True) if part not in finished]
    named = {name for plan in choose_plans(open_build(folder), MACHINE).values() for name in (plan.file, plan.onnx)}
    left = {name for name in names(folder) if name.startswith("plans/") and not name.endswith(".timings")}
    assert left == named


def test_killed_while_it_sweeps_has_plans_that_load(folder: Path, builder: FakeBuilder, tmp_path: Path) -> None:
    (folder / "plans").mkdir()
    (folder / "plans" / "old.plan").write_text("of another day")

    kill_at("unlink old.plan", folder, tmp_path / "child")

    assert list(choose_plans(open_build(folder), MACHINE)) == list(PARTS)


def test_finished_plans_are_not_built_again(folder: Path, builder: FakeBuilder) -> None:
    compile_plans(folder, JOB, {"name": "rounded"})
    before = {name: (folder / name).stat().st_mtime_ns for name in names(folder) if name != "manifest.json"}

    compile_plans(folder, JOB, {"name": "rounded"})

    assert builder.built == GRAPHS
    assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
    assert not (folder / "plans" / "staging").exists()


def test_damaged_plan_alone_is_built_again(
    folder: Path, builder: FakeBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    done = compile_plans(folder, JOB, {"name": "rounded"})
    (folder / done["projector"].file).write_bytes(b"")

    compile_plans(folder, JOB, {"name": "rounded"})

    assert builder.built == [*GRAPHS, GRAPHS[1]]
    assert "projector is compiled anew: " in caplog.text
    assert choose_plans(open_build(folder), MACHINE)


def test_manifest_whose_plans_cannot_be_read_is_mended(
    folder: Path, builder: FakeBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"format"', '"plans": [7], "format"'))

    compile_plans(folder, JOB, {"name": "rounded"})

    assert "does not describe its plans" in caplog.text
    assert choose_plans(open_build(folder), MACHINE)


def test_other_limits_take_other_plans_and_the_old_are_gone(folder: Path, builder: FakeBuilder) -> None:
    old = compile_plans(folder, JOB, {"name": "rounded"})
    longer = dataclasses.replace(JOB, limits=dataclasses.replace(LIMITS, capacity=1024))

    new = compile_plans(folder, longer, {"name": "rounded", "limits": "longer"})

    assert builder.built == GRAPHS * 2
    assert not {record.file for record in old.values()} & names(folder)
    build = open_build(folder)
    assert choose_plans(build, MACHINE) == new
    assert build.recipe == {"name": "rounded", "limits": "longer"}


@pytest.mark.parametrize("num_done", [0, 1, 2])
def test_plans_that_load_stay_until_others_are_whole(folder: Path, builder: FakeBuilder, num_done: int) -> None:
    old = compile_plans(folder, JOB, {"name": "rounded"})
    longer = dataclasses.replace(JOB, limits=dataclasses.replace(LIMITS, capacity=1024))

    def stop(part: str, phase: str, share: float) -> None:
        if part == PARTS[num_done]:
            raise BackendError("out of memory")

    with pytest.raises(BackendError, match="out of memory"):
        compile_plans(folder, dataclasses.replace(longer, on_progress=stop), {"name": "rounded"})

    assert choose_plans(open_build(folder), MACHINE) == old
    new = compile_plans(folder, longer, {"name": "rounded"})
    assert builder.built == [*GRAPHS, *GRAPHS]
    assert choose_plans(open_build(folder), MACHINE) == new
    assert not {record.file for record in old.values()} & names(folder)


def test_plans_of_another_gpu_stay_and_those_of_another_version_go(folder: Path, builder: FakeBuilder) -> None:
    older, other = (
        dataclasses.replace(MACHINE, **{key: value}) for key, value in (("version", "0.1"), ("architecture", "sm_86"))
    )
    for machine in (older, other, MACHINE):
        compile_plans(folder, dataclasses.replace(JOB, machine=machine), {"name": "rounded"})

    build = open_build(folder)
    assert [record.machine for record in read_records(build)] == [other] * 3 + [MACHINE] * 3
    assert list(choose_plans(build, other)) == list(PARTS)


def test_second_copy_of_the_weights_is_gone_also_after_a_failure(
    folder: Path, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(part: str, phase: str, share: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_plans(folder, dataclasses.replace(JOB, on_progress=stop), {"name": "rounded"})

    assert not {name for name in names(folder) if name.startswith("plans/")}
    assert list((folder / "plans").iterdir()) == []


def test_full_disk_is_told_before_anything_is_drawn(
    folder: Path, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_compile, "DISK_FACTOR", 1 << 60)

    with pytest.raises(ConfigError, match=r"plans need about .* GB, .*staging has .* GB; make room"):
        compile_plans(folder, JOB, {"name": "rounded"})

    assert builder.built == []


def test_damaged_weights_are_compiled_by_nobody(folder: Path, builder: FakeBuilder) -> None:
    path = next(folder.glob("llm*.safetensors"))
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(CheckpointError, match=r"llm-1.safetensors is not the file that was built"):
        compile_plans(folder, JOB, {"name": "rounded"})


def test_what_was_measured_is_kept_for_the_next_build(folder: Path, builder: FakeBuilder) -> None:
    compile_plans(folder, JOB, {"name": "rounded"})
    first = read_timings(folder / "plans", MACHINE)
    assert first == b"measuredmeas"  # by the second build, from what the first had measured

    (path,) = (folder / "plans").glob("*.timings")
    path.write_bytes(b"rubbish")

    assert read_timings(folder / "plans", MACHINE) == b""
    write_timings(folder / "plans", MACHINE, b"new")
    assert read_timings(folder / "plans", MACHINE) == b"new"
    assert len(list((folder / "plans").glob("*.timings"))) == 1
    assert read_timings(folder / "plans", dataclasses.replace(MACHINE, version="0.01")) == b""


def test_limits_of_a_recipe_end_with_the_models_positions() -> None:
    told = EngineLimits(max_prompt_tokens=2000, max_answer_tokens=100, batch_tiles=3)

    assert limits_of(CHECKPOINT.spec, told) == Limits(max_tiles=3, max_chunk=512, capacity=2048)
    short = dataclasses.replace(told, max_prompt_tokens=100, max_answer_tokens=1)
    assert limits_of(CHECKPOINT.spec, short) == Limits(max_tiles=3, max_chunk=100, capacity=101)


def test_limits_that_no_image_fits_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    told = EngineLimits()

    with pytest.raises(ConfigError, match=r"at least 2369 .* NVILA-8B, and 3137 about one of any aspect, got 2048"):
        limits_of(VARIANTS["NVILA-8B"].spec, told)
    limits_of(VARIANTS["NVILA-Lite-2B"].spec, EngineLimits(max_prompt_tokens=1024))
    assert "takes 1663 prompt tokens, and the recipe lets 1024: lower the node's max_tiles" in caplog.text
    assert limits_of(VARIANTS["NVILA-8B"].spec, EngineLimits(max_prompt_tokens=3584)).capacity == 3584 + 256
