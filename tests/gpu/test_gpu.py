"""The embedded model built for the GPU at hand by the command that users have, and held against torch.

    pytest -m gpu -s

Needs an NVIDIA GPU, cuda-python and TensorRT or TensorRT-RTX; skips with what is missing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from nvila_ros.errors import BackendError
from nvila_ros.models.build import open_build
from nvila_ros.runtime.loading import load_engine
from nvila_ros.runtime.tensorrt.api import FLAVOURS
from nvila_ros.runtime.tensorrt.engine import TensorRtEngine
from nvila_ros.runtime.tensorrt.machine import Machine, find_machine
from nvila_ros.serving.pipeline import load_model
from nvila_ros.tools import build
from tests.gpu import checks

RECIPES = {
    "fp16": "vision: {precision: fp16}\ndecoder: {precision: fp16}",
    "w8a8+w4a16": "vision: {precision: w8a8, activations: per_tensor}\ndecoder: {precision: w4a16}",
}
NUM_STEPS = 200

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def machine() -> Machine:
    try:
        return find_machine(FLAVOURS)[1]
    except BackendError as error:
        pytest.skip(f"no GPU to build for: {error}")


@pytest.fixture(scope="module", params=RECIPES)
def built(request: Any, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("builds")
    recipe = folder / "mine.yaml"
    recipe.write_text(
        f"model: nvila-tiny\ndevice: rtx-4090\n{RECIPES[request.param]}\ncalibration: {{media: tiny-world}}\n"
        "limits: {max_prompt_tokens: 1024, max_answer_tokens: 64, batch_tiles: 2}\n"
    )
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    args = parser.parse_args([str(recipe), "--flavour", machine.flavour, "--out", str(folder / "out")])
    assert build.run(args) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def engine(built: Path) -> TensorRtEngine:
    loaded = load_engine(open_build(built), "tensorrt")
    assert isinstance(loaded, TensorRtEngine)
    return loaded


def test_every_part_is_what_torch_computes(engine: TensorRtEngine, built: Path) -> None:
    checks.check_parts(engine, load_engine(open_build(built), "torch"))


def test_branches_prefixes_and_best_are_what_they_say(engine: TensorRtEngine) -> None:
    checks.check_branches(engine)
    checks.check_copied_prefix(engine)
    checks.check_best(engine)


def test_answers_are_those_of_torch(built: Path) -> None:
    got, want = (load_model(str(built), backend=backend) for backend in ("tensorrt", "torch"))

    checks.check_answers(got, want, checks.EQUAL_ANSWERS[got.info.precision])


def test_graph_gives_what_kernels_give(engine: TensorRtEngine) -> None:
    if not engine.use_graphs:
        pytest.skip("this TensorRT has no cache in place, so that no step is captured")

    checks.check_graphs(engine)
    plain_ms, graph_ms = (checks.step_ms(engine, use_graphs, NUM_STEPS) for use_graphs in (False, True))
    print(f"\na step of one token, {engine.precision}: {plain_ms:.2f} ms, as a graph {graph_ms:.2f} ms")


def test_plan_of_another_gpu_is_refused(built: Path, machine: Machine) -> None:
    path = built / "manifest.json"
    text = path.read_text()
    told = json.loads(text)
    for plan in told["plans"]:
        plan["machine"]["architecture"] = "sm_00"
    path.write_text(json.dumps(told))

    try:
        with pytest.raises(BackendError, match=rf"on sm_00.*this is {machine.flavour} .*; compile it on this machine"):
            load_engine(open_build(built), "tensorrt")
    finally:
        path.write_text(text)
