"""Builds: whole, resumable, refused where there is no room, and answering as the model that they were made of."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nvila_ros.builds import builder as building
from nvila_ros.builds.builder import Estimate, check_room, estimate, fingerprint, make_build, precision_of
from nvila_ros.builds.recipes import DecoderRecipe, Recipe, VisionRecipe
from nvila_ros.errors import CheckpointError, ConfigError, FrameError
from nvila_ros.generation.generator import embed_prompt
from nvila_ros.models.build import is_build, open_build
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.quantized import Int4Weight, Int8Weight
from nvila_ros.prompt.chat import build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.quantization.calibration import Calibration, CalibrationSample, calibrate
from nvila_ros.runtime.loading import load_engine
from nvila_ros.serving.pipeline import load_model
from nvila_ros.types import Frame, Query
from nvila_ros.visual.encode import arrange, merge_features
from nvila_ros.visual.tiles import normalize_tiles
from nvila_ros.visual.views import view_image
from tests.golden_cases import GOLDEN, read_image

pytestmark = pytest.mark.slow  # quantizes a model many times

CHECKPOINT = open_checkpoint(GOLDEN / "video" / "ckpt")
RECIPE = Recipe(name="mine", model="m", device="cpu", decoder=DecoderRecipe(group_size=32))
HALF = dataclasses.replace(
    RECIPE, vision=VisionRecipe(precision="fp16"), decoder=DecoderRecipe(precision="fp16", group_size=32)
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    image = read_image(GOLDEN / "media" / "small.png")
    tokenizer = ChatTokenizer.from_folder(CHECKPOINT.tokenizer_folder)
    return calibrate(
        CHECKPOINT,
        tokenizer,
        [CalibrationSample((image,), "What is it?"), CalibrationSample((image,) * 8, "Where to?")],
    )


class Steps:
    """Counts layers, and fails at one."""

    def __init__(self, fail_at: str = "") -> None:
        self.told: list[str] = []
        self.fail_at = fail_at

    def __call__(self, part: str, done: int, total: int) -> None:
        self.told.append(f"{part} {done}/{total}")
        if self.told[-1] == self.fail_at:
            raise KeyboardInterrupt


def make(folder: Path, calibration: Calibration, recipe: Recipe = RECIPE, steps: Steps | None = None) -> None:
    make_build(recipe, CHECKPOINT, lambda: calibration, folder, steps or Steps())


def test_build_holds_every_part_quantized_as_the_recipe_says(tmp_path: Path, calibration: Calibration) -> None:
    steps = Steps()
    make(tmp_path / "out", calibration, steps=steps)

    build = open_build(tmp_path / "out")

    weights = build.weights()
    assert build.spec == CHECKPOINT.spec
    assert build.precision == "w8a8+w4a16"
    assert set(CHECKPOINT.weights()) == set(weights)
    kinds = {key: type(weights[key]) for key in weights}
    assert {k for k, kind in kinds.items() if kind is Int8Weight} == {
        k for k in weights if k.startswith("vision_tower") and ".layers." in k and np.ndim(CHECKPOINT.load()[k]) == 2
    }
    assert all(
        kinds[k] is Int4Weight for k in weights if k.startswith("llm.model.layers") and k.endswith("proj.weight")
    )
    assert ChatTokenizer.from_folder(build.tokenizer_folder).num_tokens == 292
    assert steps.told == ["llm 1/2", "llm 2/2", "vision_tower 1/1"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "llm-00001.safetensors",
        "manifest.json",
        "mm_projector-00001.safetensors",
        "tokenizer",
        "vision_tower-00001.safetensors",
    ]


def test_killed_build_is_no_build_and_goes_on_with_the_part_it_was_at(tmp_path: Path, calibration: Calibration) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    make(whole, calibration)

    with pytest.raises(KeyboardInterrupt):
        make(cut, calibration, steps=Steps(fail_at="vision_tower 1/1"))
    assert not is_build(cut)
    steps = Steps()
    make(cut, calibration, steps=steps)

    assert steps.told == ["vision_tower 1/1"]  # the language model was done before
    assert {p.name: p.read_bytes() for p in cut.glob("*.safetensors")} == {
        p.name: p.read_bytes() for p in whole.glob("*.safetensors")
    }


CHILD = """
import os, signal, sys
import numpy as np
from pathlib import Path
from nvila_ros.builds.builder import make_build
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.quantization.calibration import Calibration
from nvila_ros.builds.recipes import DecoderRecipe, Recipe, VisionRecipe

half = VisionRecipe(precision="fp16"), DecoderRecipe(precision="fp16", group_size=32)
recipe = Recipe(name="mine", model="m", device="cpu", vision=half[0], decoder=half[1])
count, replace = [0], os.replace
def die_at(*args):
    if count[0] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    count[0] += 1
    return replace(*args)
os.replace = Path.replace = die_at
make_build(recipe, open_checkpoint(sys.argv[1]), lambda: None, Path(sys.argv[2]), lambda *args: None)
"""


@pytest.mark.parametrize("num_files", [0, 2, 3])
def test_build_that_was_killed_before_a_file_was_whole_is_none(tmp_path: Path, num_files: int) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", CHILD, str(CHECKPOINT.path), str(out), str(num_files)]
    done = subprocess.run(command, cwd=GOLDEN.parents[2], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr

    assert len(list(out.glob("*.safetensors"))) == num_files
    assert not is_build(out)
    make_build(HALF, CHECKPOINT, lambda: pytest.fail("half precision needs no calibration"), out, Steps())
    assert open_build(out).precision == "fp16"


def test_build_that_was_killed_while_it_was_sealed_is_sealed_again(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("nvila_ros.models.build.digest_file", die)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, calibration)
    assert not is_build(tmp_path)
    steps = Steps()
    make(tmp_path, calibration, steps=steps)

    assert steps.told == []
    assert open_build(tmp_path).precision == "w8a8+w4a16"
    assert not list(tmp_path.glob("*.done")) + list(tmp_path.glob("state.json"))


def test_half_a_shard_is_in_the_way_of_no_other_recipe(tmp_path: Path, calibration: Calibration) -> None:
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, calibration, steps=Steps(fail_at="vision_tower 1/1"))
    (tmp_path / ".part-7-vision_tower-00001.safetensors").write_bytes(b"half")

    make(tmp_path, calibration, HALF)

    assert open_build(tmp_path).precision == "fp16"


def test_other_recipe_starts_anew_and_a_finished_build_is_replaced(tmp_path: Path, calibration: Calibration) -> None:
    make(tmp_path / "out", calibration)

    make(tmp_path / "out", calibration, HALF)

    build = open_build(tmp_path / "out")
    assert build.precision == "fp16"
    floats = CHECKPOINT.load()
    weights = build.weights()
    assert all(np.allclose(weights[key], floats[key], atol=1e-3) for key in weights)


def test_finished_build_stays_where_the_next_cannot_begin(tmp_path: Path, calibration: Calibration) -> None:
    make(tmp_path / "out", calibration)

    def fail() -> Calibration:
        raise FrameError("README.txt is no video")

    other = dataclasses.replace(RECIPE, decoder=dataclasses.replace(RECIPE.decoder, clip=not RECIPE.decoder.clip))
    with pytest.raises(FrameError, match="no video"):
        building.make_build(other, CHECKPOINT, fail, tmp_path / "out", lambda *step: None)

    assert open_build(tmp_path / "out").recipe == dataclasses.asdict(RECIPE)


def test_folder_of_something_else_is_left_alone(tmp_path: Path, calibration: Calibration) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")

    with pytest.raises(ConfigError, match=r"contains \['thesis.txt'\], which no build wrote"):
        make(tmp_path, calibration)

    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_shards_are_cut_at_their_size(
    tmp_path: Path, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "SHARD_BYTES", 20_000)

    make(tmp_path / "out", calibration)

    assert len(list((tmp_path / "out").glob("llm-*.safetensors"))) > 2
    assert set(open_build(tmp_path / "out").weights()) == set(CHECKPOINT.weights())


def test_fingerprint_tells_checkpoints_apart(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(GOLDEN / "video" / "ckpt", tmp_path / "ckpt"))
    assert fingerprint(open_checkpoint(copy)) == fingerprint(CHECKPOINT)

    weights = copy / "llm" / "model-00001-of-00003.safetensors"
    held = load_file(weights)
    held[sorted(held)[len(held) // 2]] += 1  # amid the file
    save_file(held, weights)
    assert fingerprint(open_checkpoint(copy)) != fingerprint(CHECKPOINT)

    shutil.copyfile(GOLDEN / "video" / "ckpt" / "llm" / "model-00001-of-00003.safetensors", weights)
    assert fingerprint(open_checkpoint(copy)) == fingerprint(CHECKPOINT)
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_video_frames": 32}))

    assert fingerprint(open_checkpoint(copy)) != fingerprint(CHECKPOINT)


@pytest.mark.parametrize(
    ("needed", "rule"),
    [
        (Estimate(1 << 60, 1, 1), "needs about 1152921504.61 GB of memory, .* [GM]B is available; end other programs"),
        (Estimate(1, 1 << 60, 1), "needs about 1152921504.61 GB on disk, .* has .*B; choose another"),
    ],
)
def test_build_without_room_is_refused(tmp_path: Path, needed: Estimate, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        check_room(needed, tmp_path)


def test_estimate_grows_with_what_is_asked() -> None:
    few, many = (
        estimate(
            dataclasses.replace(RECIPE, calibration=dataclasses.replace(RECIPE.calibration, num_samples=n)), CHECKPOINT
        )
        for n in (1, 512)
    )

    assert few.memory_bytes < many.memory_bytes
    assert few.disk_bytes == many.disk_bytes < estimate(HALF, CHECKPOINT).disk_bytes


def test_precision_is_named_tower_first() -> None:
    assert precision_of(RECIPE) == "w8a8+w4a16"
    assert precision_of(HALF) == "fp16"
    mixed = dataclasses.replace(HALF, decoder=DecoderRecipe())
    assert precision_of(mixed) == "fp16+w4a16"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, calibration: Calibration) -> Path:
    folder = tmp_path_factory.mktemp("builds") / "mine.cpu"
    make(folder, calibration)
    return folder


def logits_of(folder: Path, backend: str) -> np.ndarray:
    """Return the logits after a picture and a question, (V,), on one thread."""
    build = open_build(folder)
    engine = load_engine(build, backend, threads=1)
    view = view_image(build.spec, read_image(GOLDEN / "media" / "small.png"))
    feat_NPE = engine.vision(normalize_tiles(view.tiles))
    seen = arrange(build.spec, view, engine.project(merge_features(build.spec, view, feat_NPE)))
    ids_L = build_prompt(ChatTokenizer.from_folder(build.tokenizer_folder), [*seen.parts, "What is it?"])
    assert engine.precision == "w8a8+w4a16"
    return engine.forward(embed_prompt(engine, ids_L, seen.visual_GD), engine.new_cache(len(ids_L)))


def test_onnxruntime_computes_of_a_build_what_the_simulation_does(built: Path) -> None:
    got, want = (logits_of(built, backend) for backend in ("onnxruntime", "torch"))

    # An input that lies halfway between two values may round to either side, and later layers amplify that.
    assert np.abs(got - want).max() < 0.05 * want.std()


def test_build_is_found_by_its_recipes_name_and_answers(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVILA_ROS_BUILDS", str(built.parent))
    frame = Frame(image=read_image(GOLDEN / "media" / "small.png"), stamp_ns=1)

    answer = load_model("mine.cpu").answer(Query(query_id="q", question="What is it?", max_tokens=4), [frame])

    assert answer.finish_reason.is_answered
    assert (answer.backend, answer.precision) == ("cpu", "w8a8+w4a8")
    with pytest.raises(CheckpointError, match=r"one of the builds \['mine.cpu'\]"):
        load_model("yours.cpu")


def test_tower_is_calibrated_on_few_tiles_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "TOWER_TOKENS", 3 * 64)
    tile_NCHW = np.arange(9, dtype=np.float32).reshape(9, 1, 1, 1)

    assert building.pick_tiles(CHECKPOINT, tile_NCHW).ravel().tolist() == [0, 4, 8]
    assert len(building.pick_tiles(CHECKPOINT, tile_NCHW[:2])) == 2


def test_nothing_is_calibrated_that_no_part_looks_at(tmp_path: Path) -> None:
    def refuse() -> Calibration:
        raise AssertionError("half precision needs no calibration")

    make_build(HALF, CHECKPOINT, refuse, tmp_path / "out", Steps())

    assert open_build(tmp_path / "out").precision == "fp16"
