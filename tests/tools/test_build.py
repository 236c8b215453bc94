"""The verb that makes builds: what is there already is not made again, on this machine or another."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, Popen
from types import SimpleNamespace
from typing import Any

import pytest

from nvila_ros.builds.recipes import read_recipe
from nvila_ros.errors import BackendError
from nvila_ros.files import exclusive_lock
from nvila_ros.models.build import open_build, rewrite_plans
from nvila_ros.runtime.tensorrt import compile as tensorrt_compile
from nvila_ros.runtime.tensorrt.cuda import Cuda
from nvila_ros.runtime.tensorrt.plans import PARTS, choose_plans
from nvila_ros.tools import build, cli
from tests.runtime.rounded_build import write_rounded_build
from tests.runtime.tensorrt.fake_build import MACHINE, FakeBuilder
from tests.runtime.tensorrt.fake_tensorrt import FakeCudart

pytestmark = pytest.mark.slow  # quantizes, and starts processes

ROOT = Path(__file__).parents[2]
RECIPE = """
model: nvila-tiny
device: {device}
vision: {{precision: fp16}}
decoder: {{precision: fp16}}
calibration: {{media: tiny-world}}
limits: {{max_prompt_tokens: {prompt}}}
"""


@pytest.fixture(autouse=True)
def one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVILA_ROS_BUILDS", str(tmp_path / "builds"))


def write_recipe(folder: Path, device: str = "agx-orin", prompt: int = 512) -> str:
    path = folder / "mine.yaml"
    path.write_text(RECIPE.format(device=device, prompt=prompt))
    return str(path)


def run(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, *argv: str) -> tuple[dict[str, Any], str]:
    """Run the verb; return its JSON line and what it told people."""
    caplog.clear()
    with caplog.at_level("INFO"):
        assert cli.main(["build", *argv]) == 0
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]), caplog.text + err


def use_device(monkeypatch: pytest.MonkeyPatch, store: Path, **changes: object) -> FakeBuilder:
    """Let the verb find TensorRT and a GPU."""
    builder = FakeBuilder(store)
    trt = SimpleNamespace(INetworkDefinition=object, __version__="0.0")
    machine = type(MACHINE)(**{name: getattr(MACHINE, name) for name in MACHINE.__slots__} | changes)
    monkeypatch.setattr(tensorrt_compile, "build_plan", builder)
    monkeypatch.setattr(build, "find_machine", lambda flavours: (trt, machine, Cuda(FakeCudart())))
    return builder


def lose_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(flavours: object) -> None:
        raise BackendError("tensorrt cannot be loaded")

    monkeypatch.setattr(build, "find_machine", refuse)


def test_weights_of_a_workstation_are_compiled_on_the_robot(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    lose_device(monkeypatch)
    made, text = run(capsys, caplog, write_recipe(tmp_path))
    assert made["plans"] == ""
    assert "nothing compiles plans here: tensorrt cannot be loaded. Left to do: copy " in text
    assert "to the agx-orin and run there: nvila build mine" in text

    copied = shutil.copytree(made["out"], tmp_path / "robot" / "mine")
    shutil.rmtree(made["out"])
    builder = use_device(monkeypatch, tmp_path / "store")
    monkeypatch.setattr(build, "_make_weights", lambda *args: pytest.fail("the weights are there"))
    monkeypatch.setattr(build, "has_checkpoint", lambda model: False)
    done, text = run(capsys, caplog, str(copied))

    assert done["plans"] == str(MACHINE)
    assert "has the weights already" in text
    assert len(builder.built) == len(PARTS)
    assert list(choose_plans(open_build(copied), MACHINE)) == list(PARTS)


def test_second_run_makes_nothing_and_changed_limits_make_plans_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    builder = use_device(monkeypatch, tmp_path / "store")
    recipe = write_recipe(tmp_path)
    made, _ = run(capsys, caplog, recipe, "--progress", "json")
    monkeypatch.setattr(build, "_make_weights", lambda *args: pytest.fail("the weights are there"))

    again, _ = run(capsys, caplog, recipe)
    assert again == made
    assert len(builder.built) == len(PARTS)
    run(capsys, caplog, write_recipe(tmp_path, prompt=256))

    assert len(builder.built) == 2 * len(PARTS)
    opened = open_build(Path(made["out"]))
    assert choose_plans(opened, MACHINE)["decoder"].limits.capacity == 256 + 256
    assert opened.recipe["limits"]["max_prompt_tokens"] == 256


def test_changed_limits_of_a_build_without_plans_are_told_and_cost_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    made, _ = run(capsys, caplog, write_recipe(tmp_path, device="cpu"))
    monkeypatch.setattr(build, "_make_weights", lambda *args: pytest.fail("the weights are there"))

    run(capsys, caplog, write_recipe(tmp_path, device="cpu", prompt=256))

    assert open_build(Path(made["out"])).recipe["limits"]["max_prompt_tokens"] == 256


def test_other_media_make_other_weights_and_media_left_open_make_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    recipe = write_recipe(tmp_path, device="cpu")
    for name in ("kitchen", "warehouse"):
        (tmp_path / name).mkdir()
    made, _ = run(capsys, caplog, recipe, "--media", str(tmp_path / "kitchen"))

    _, told = run(capsys, caplog, recipe, "--media", str(tmp_path / "warehouse"))
    assert "was built by other values of calibration.media" in told
    Path(recipe).write_text(Path(recipe).read_text().replace("{media: tiny-world}", "{}"))
    _, told = run(capsys, caplog, recipe)
    assert "has the weights already" in told
    assert open_build(Path(made["out"])).recipe["calibration"]["media"] == str(tmp_path / "warehouse")


def test_progress_grows_to_one_over_weights_and_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_device(monkeypatch, tmp_path / "store")

    assert cli.main(["build", write_recipe(tmp_path), "--progress", "json"]) == 0

    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()][:-1]
    shares = [line["progress"] for line in told]
    assert list(dict.fromkeys(line["part"] for line in told)) == ["calibration", "llm", "vision_tower", *PARTS]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


@pytest.mark.parametrize(
    ("options", "changes", "rule"),
    [
        ([], {"architecture": "sm_89"}, "on sm_89 of 16 multiprocessors is no agx-orin; name --flavour to compile"),
        (["--parts-only"], {}, "the parts run anywhere but on TensorRT. Left to do: copy"),
    ],
)
def test_what_is_left_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    options: list[str],
    changes: dict[str, object],
    rule: str,
) -> None:
    builder = use_device(monkeypatch, tmp_path / "store", **changes)

    made, text = run(capsys, caplog, write_recipe(tmp_path), *options)

    assert rule in text
    assert builder.built == []
    assert made["plans"] == ""
    assert open_build(Path(made["out"])).precision == "fp16"


def test_named_flavour_compiles_for_whichever_gpu_is_here(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    use_device(monkeypatch, tmp_path / "store", architecture="sm_89")

    made, _ = run(capsys, caplog, write_recipe(tmp_path), "--flavour", "tensorrt")

    assert "sm_89" in made["plans"]


def test_one_build_waits_for_another_where_it_is_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = write_recipe(tmp_path, device="cpu"), tmp_path / "builds" / "mine"
    with exclusive_lock(out, work="build", is_inside=False):
        assert cli.main(["build", recipe]) == 2
        assert "another build is at work" in capsys.readouterr().err
        command = [sys.executable, "-m", "nvila_ros.tools.cli", "build", recipe, "--wait"]
        child = Popen(command, stdout=PIPE, stderr=PIPE, text=True)
        assert child.stderr is not None
        assert any("another build is at work" in line for line in child.stderr)  # up to the line that says so
        assert child.poll() is None
    told, _ = child.communicate(timeout=60)

    assert child.returncode == 0
    assert json.loads(told.splitlines()[-1])["out"] == str(out)


def test_dry_run_makes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_device(monkeypatch, tmp_path / "store")

    assert cli.main(["build", write_recipe(tmp_path), "--dry-run"]) == 0

    out, err = capsys.readouterr()
    assert out == ""
    assert "about" in err
    assert not (tmp_path / "builds").exists()


@pytest.mark.parametrize(
    ("argv", "rule"),
    [
        (["nvila-tiny.cpu", "--target", "SM86"], "--flavour and --target compile plans, which"),
        (["nvila-tiny.rtx-4090", "--flavour", "tensorrt", "--target", "SM86"], "--target is for tensorrt_rtx"),
        (
            ["nvila-lite-2b.agx-orin", "--parts-only"],
            "has no finished weights; to make weights of NVILA-Lite-2B, run: nvila fetch NVILA-Lite-2B",
        ),
        (["nowhere"], "no recipe at 'nowhere'"),
        (["nvila-tiny.cpu", "--dry-run", "--media", "/nowhere"], "calibration media must be a folder of images and"),
    ],
)
def test_options_that_make_no_sense_are_refused(argv: list[str], rule: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["build", *argv]) == 2

    assert rule in capsys.readouterr().err


def test_changed_recipe_and_damaged_weights_are_told_where_they_cannot_be_made_anew(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    lose_device(monkeypatch)
    made, _ = run(capsys, caplog, write_recipe(tmp_path))
    monkeypatch.setattr(build, "has_checkpoint", lambda model: False)
    path = Path(write_recipe(tmp_path))
    path.write_text(path.read_text().replace("decoder: {precision: fp16}", "decoder: {precision: w4a16}"))

    assert cli.main(["build", str(path)]) == 2
    assert "was built by other values of decoder.precision; to make weights of nvila-tiny" in capsys.readouterr().err
    shard = next(Path(made["out"]).glob("llm-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert cli.main(["build", made["out"]]) == 2
    assert "is not the file that was built" in capsys.readouterr().err


def test_robot_that_only_compiles_needs_no_torch(tmp_path: Path) -> None:
    """Without TensorRT it ends where plans are to be compiled, which is behind all that could ask for torch."""
    folder = write_rounded_build(tmp_path / "mine")
    rewrite_plans(folder, dataclasses.asdict(read_recipe("nvila-tiny.agx-orin")), ())
    code = "import sys; sys.modules['torch'] = None; from nvila_ros.tools.cli import main; sys.exit(main(sys.argv[1:]))"

    command = [sys.executable, "-c", code, "build", str(folder), "--flavour", "tensorrt"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert (done.returncode, done.stdout) == (2, "")
    assert "tensorrt cannot be loaded" in done.stderr
    command.remove("--flavour"), command.remove("tensorrt")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "has the weights already" in done.stderr
