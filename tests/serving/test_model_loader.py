"""The loader without ROS: what it loads, what it refuses, and that a build is only made where one is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.builds.build_process import BuildProcess, Progress, read_progress
from nvila_ros.config import NodeConfig
from nvila_ros.errors import BackendError, BuildError, CheckpointError, ConfigError, NvilaError
from nvila_ros.models.build import MANIFEST
from nvila_ros.serving.model_loader import (
    ModelLoader,
    ModelState,
    PlannedBuild,
    Status,
    check_build,
    check_inputs,
    plan_build,
)
from tests.tiny import FakeModel

RECIPE = "model: nvila-tiny\ndevice: cpu\ncalibration: {media: tiny-world}\n"
WAIT_S = 30.0


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NVILA_ROS_BUILDS", str(tmp_path / "builds"))
    path = tmp_path / "quick.yaml"
    path.write_text(RECIPE)
    return path


def finished(recipe: Path, **changes: Any) -> PlannedBuild:
    """A build of a recipe as far as its manifest tells; `changes` are values it was made by."""
    planned = plan_build(NodeConfig(recipe=str(recipe)))
    told = {"model": "nvila-tiny", "device": "cpu", "decoder": {"precision": "w4a16"}} | changes
    planned.folder.mkdir(parents=True)
    (planned.folder / MANIFEST).write_text(json.dumps({"recipe": told}))
    return planned


def supplied(config: NodeConfig, load: Callable[..., Any]) -> tuple[ModelLoader, list[Status]]:
    """A loader that has ended, and what it said."""
    said: list[Status] = []
    loader = ModelLoader(config, load, said.append)
    loader.start()
    loader._thread.join(WAIT_S)
    return loader, said


def test_model_is_loaded_warmed_up_and_given_once() -> None:
    loader, said = supplied(NodeConfig(model="some"), lambda model, **_: FakeModel())

    model = loader.take_model()
    assert model.num_warm_ups == 1
    assert loader.take_model() is None
    assert [status.state for status in said] == [ModelState.LOADING, ModelState.READY]
    assert (said[-1].model, said[-1].backend, said[-1].precision, said[-1].progress) == ("fake", "numpy", "none", 1.0)


def test_build_of_the_recipe_is_loaded_in_place_of_the_model(recipe: Path) -> None:
    planned = finished(recipe)
    asked: list[str] = []

    supplied(NodeConfig(recipe=str(recipe)), lambda model, **_: asked.append(model) or FakeModel())

    assert asked == [str(planned.folder)]


@pytest.mark.parametrize("error", [BackendError("no such device"), RuntimeError("out of memory")])
def test_what_no_build_would_mend_ends_the_loading(recipe: Path, error: Exception) -> None:
    finished(recipe)

    def load(model: str, **options: Any) -> FakeModel:
        raise error

    loader, said = supplied(NodeConfig(recipe=str(recipe), build_missing_engines=True), load)

    assert loader.error is error
    assert [status.state for status in said][-1] is ModelState.FAILED


def test_build_that_does_not_load_is_refused_with_the_command(recipe: Path) -> None:
    finished(recipe)

    def load(model: str, **options: Any) -> FakeModel:
        raise CheckpointError("llm-00001.safetensors was truncated")

    loader, _ = supplied(NodeConfig(recipe=str(recipe)), load)

    assert isinstance(loader.error, ConfigError)
    assert f"truncated; run nvila build {recipe}, or set build_missing_engines" in str(loader.error)


def test_build_without_plans_for_this_machine_is_one_that_is_missing(recipe: Path) -> None:
    finished(recipe)

    def load(model: str, **options: Any) -> FakeModel:
        raise BackendError("holds no plans")

    loader, _ = supplied(NodeConfig(recipe=str(recipe), backend="tensorrt"), load)

    assert isinstance(loader.error, ConfigError)
    assert f"holds no plans; run nvila build {recipe}" in str(loader.error)


def test_missing_build_is_named(recipe: Path) -> None:
    with pytest.raises(CheckpointError, match="recipe quick has no finished build in"):
        check_build(plan_build(NodeConfig(recipe=str(recipe))))


def test_build_of_other_values_is_named_by_what_changed(recipe: Path) -> None:
    planned = finished(recipe, decoder={"precision": "fp16"})

    with pytest.raises(CheckpointError, match="was built before the recipe changed in decoder"):
        check_build(planned)


@pytest.mark.parametrize("told", [{"vision": {}}, {"calibration": {"media": "/where/it/was/built"}}], ids=str)
def test_build_of_fewer_options_or_other_media_is_still_one(recipe: Path, told: dict[str, Any]) -> None:
    check_build(finished(recipe, **told))


def test_command_names_what_is_missing_and_what_only_the_user_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NVILA_ROS_CHECKPOINTS", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert plan_build(NodeConfig(recipe="nvila-lite-2b.cpu")).command == (
        "nvila fetch NVILA-Lite-2B && nvila build nvila-lite-2b.cpu --media FOLDER"
    )
    told = NodeConfig(recipe="nvila-lite-2b.cpu", checkpoint="/a b", media="/c")
    assert plan_build(told).command == "nvila build nvila-lite-2b.cpu --checkpoint '/a b' --media /c"
    plans = plan_build(NodeConfig(recipe="nvila-lite-2b.orin-nano"), has_weights=True)
    assert plans.command == "nvila build nvila-lite-2b.orin-nano"
    assert plan_build(NodeConfig(recipe="nvila-tiny.cpu")).command == "nvila build nvila-tiny.cpu"


def test_inputs_that_are_not_named_are_refused_before_any_work(tmp_path: Path) -> None:
    named = {"media": str(tmp_path)}
    for told, message in [
        (named, "run: nvila fetch NVILA-Lite-2B"),
        ({"checkpoint": str(tmp_path)}, "a folder by media"),
    ]:
        config = NodeConfig(recipe="nvila-lite-2b.cpu", **told)
        with pytest.raises(NvilaError, match=message):
            check_inputs(config, plan_build(config).recipe)


def test_building_needs_a_recipe_and_answering_meanwhile_a_build() -> None:
    with pytest.raises(ConfigError, match="without a recipe"):
        NodeConfig(build_missing_engines=True)
    for name in ("checkpoint", "media"):
        with pytest.raises(ConfigError, match=f"{name} is set without a recipe"):
            NodeConfig(**{name: "/somewhere"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="set build_missing_engines too"):
        NodeConfig(recipe="nvila-tiny.cpu", answer_while_building=True)


@given(st.sampled_from(ModelState), st.floats(0, 1), st.sampled_from(["", "fake"]))
def test_queries_are_refused_only_where_none_answers_and_none_will_soon(
    state: ModelState, progress: float, model: str
) -> None:
    status = Status(state=state, progress=progress, text="why", model=model)

    is_refused = not model and state in (ModelState.BUILDING, ModelState.FAILED)
    assert bool(status.refusal) == is_refused


@given(st.text())
def test_only_progress_is_read_as_progress(line: str) -> None:
    assert read_progress(line) is None


@given(st.text(), st.integers(0, 99), st.floats(0, 1))
def test_progress_survives_its_line(part: str, done: int, share: float) -> None:
    line = json.dumps({"part": part, "done": done, "total": 99, "progress": share})

    assert read_progress(line) == Progress(part, done, 99, share)


def test_failed_build_tells_its_last_line() -> None:
    pytest.importorskip("torch")

    with pytest.raises(BuildError, match=r"nvila build no-such ended with code 2; .*error: no recipe at 'no-such'"):
        list(BuildProcess(["no-such"]))
