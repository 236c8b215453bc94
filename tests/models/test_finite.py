"""Weights with NaN or infinity: found whatever their dtype and place, and refused by name wherever they are loaded."""

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nvila_ros.errors import CheckpointError
from nvila_ros.models import finite
from nvila_ros.models.build import open_build, write_manifest
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.finite import check_finite, is_finite
from nvila_ros.runtime.loading import load_engine
from tests.golden_cases import CHECKPOINT
from tests.runtime.rounded_build import write_rounded_build

HALVES = (np.float16, ml_dtypes.bfloat16)
WHOLE = (np.float32, np.float64)
KEY = "llm.model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("dtype", HALVES)
def test_every_pattern_of_16_bits_is_told_as_numpy_tells_it(dtype: type) -> None:
    values = np.arange(1 << 16, dtype=np.uint16).view(dtype)

    got = [is_finite(values[i : i + 1]) for i in range(len(values))]

    assert got == np.isfinite(values.astype(np.float32)).tolist()


@pytest.mark.parametrize("dtype", [*HALVES, *WHOLE])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_one_value_is_found_at_any_place(dtype: type, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "_CHUNK", 4)
    highest = ml_dtypes.finfo(dtype).max
    array = np.array([highest, -highest, 0, -0.0, 1, -1, 2, 3, 4] * 2, dtype).reshape(2, 9)

    assert is_finite(array)
    for i in range(array.size):
        broken = array.copy()
        broken.reshape(-1)[i] = value
        assert not is_finite(broken)


def test_empty_tensor_is_finite() -> None:
    assert is_finite(np.empty((0, 4), np.float16))


def test_message_has_the_count_and_the_first_place() -> None:
    array = np.zeros((3, 4), np.float16)
    array[1, 2], array[2, 0] = np.inf, np.nan

    with pytest.raises(CheckpointError, match=r"some must be finite, 2 of its 12 values are not, .* inf at \[1, 2\]"):
        check_finite("some", array)


def break_tensor(file: Path, name: str, value: float) -> None:
    tensors = load_file(file)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, file)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "ckpt"))
    file = next(file for file in (folder / "llm").glob("*.safetensors") if KEY.removeprefix("llm.") in load_file(file))
    break_tensor(file, KEY.removeprefix("llm."), torch.nan)
    return folder


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_checkpoint_with_a_nan_does_not_load(broken: Path, backend: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{KEY} in .*llm.* must be finite, 1 of its .* the first is nan at"):
        load_engine(open_checkpoint(broken), backend)


def test_layer_that_reaches_no_answer_may_hold_anything(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "ckpt"))
    file = folder / "vision_tower" / "model.safetensors"
    last = open_checkpoint(folder).spec.vision.num_layers - 1
    break_tensor(file, f"vision_model.encoder.layers.{last}.mlp.fc1.weight", torch.inf)

    open_checkpoint(folder).load()


@pytest.mark.parametrize("name", ["llm.model.norm.weight", "llm.model.layers.0.mlp.up_proj.weight.scale"])
def test_build_with_an_infinity_does_not_load(tmp_path: Path, name: str) -> None:
    folder = write_rounded_build(tmp_path / "out")
    build = open_build(folder)
    break_tensor(build.tensors[name].file, name, torch.inf)
    write_manifest(folder, build.spec, build.precision, build.recipe, build.source)

    with pytest.raises(CheckpointError, match=f"{name} in .* must be finite"):
        load_engine(open_build(folder), "onnxruntime")


def test_table_whose_rows_are_mapped_is_checked_too(tmp_path: Path) -> None:
    folder = write_rounded_build(tmp_path / "out")
    build = open_build(folder)
    name = "llm.model.embed_tokens.weight"
    break_tensor(build.tensors[name].file, name, torch.nan)
    write_manifest(folder, build.spec, build.precision, build.recipe, build.source)

    with pytest.raises(CheckpointError, match=f"{name} in .* must be finite"):
        open_build(folder).map_tensor(name)
