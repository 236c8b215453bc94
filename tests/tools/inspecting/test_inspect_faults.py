"""`nvila inspect` of a broken checkpoint: all that can be said, and what is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nvila_ros.errors import CheckpointError
from nvila_ros.tools import cli
from tests.tools.inspecting.checkpoints import PROJECTOR, change_json, change_tensors, inspect, inspect_json, load

Break = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda root: (root / PROJECTOR).write_bytes((root / PROJECTOR).read_bytes()[:-100]),
            "model.safetensors is truncated or not safetensors",
        ),
        (
            lambda root: (root / "llm" / "model-00002-of-00002.safetensors").unlink(),
            "weights are missing: 1 of 2 files in",
        ),
        (
            lambda root: (root / PROJECTOR).rename(root / "mm_projector" / "pytorch_model.bin"),
            "convert ['pytorch_model.bin'] to safetensors, since pickles can run code",
        ),
        (
            lambda root: change_tensors(root / PROJECTOR, lambda tensors: tensors.pop("layers.2.weight")),
            "1 tensors are missing, first mm_projector.layers.2.weight",
        ),
        (
            lambda root: change_tensors(
                root / PROJECTOR, lambda tensors: tensors.update({"layers.1.bias": np.zeros(3, np.float32)})
            ),
            "mm_projector.layers.1.bias must be (576,) by the config, the file has (3,)",
        ),
        (lambda root: (root / "llm" / "vocab.json").unlink(), "vocab.json is missing"),
        (
            lambda root: change_json(root / "llm" / "added_tokens.json", **{"[MORE]": 291}),
            "must number its tokens without gaps",
        ),
        (
            lambda root: change_json(root / "llm" / "config.json", vocab_size=100),
            "<|im_end|> must be a row of the embedding table, got id 286 and 100 rows",
        ),
        (
            lambda root: change_json(root / "llm" / "model.safetensors.index.json", weight_map={}),
            "names no weight files",
        ),
        (
            lambda root: (root / "vision_tower" / "preprocessor_config.json").write_text('{"do_normalize": false}'),
            "do_normalize must be True, got False",
        ),
        (
            lambda root: (root / "vision_tower" / "preprocessor_config.json").write_text('{"rescale_factor": 1.0}'),
            "rescale_factor of the image processor must be 1/255, got 1.0",
        ),
        (
            lambda root: change_tensors(
                root / PROJECTOR,
                lambda tensors: tensors.update({"layers.1.bias": tensors["layers.1.bias"].astype(np.int32)}),
            ),
            "weights must be of ['BF16', 'F16', 'F32', 'F64'], got ['I32'] as well",
        ),
    ],
)
def test_fault_is_named_beside_all_that_can_be_said(
    damage: Break, said: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy)

    code, told = inspect(capsys, copy)

    assert code == 1
    fault = told.partition(" fault: ")[2].replace(" ", "")  # a table breaks its lines anywhere in a long path
    assert said.replace(" ", "") in fault
    assert "1 to 12 tiles of 112 px" in told
    assert "image 1920x1080 4 x 2 9 81 99" in told
    assert "sound: " not in told
    with pytest.raises(CheckpointError):
        load(copy)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda root: (root / "config.json").write_text("{"), "config.json is not readable as JSON"),
        (lambda root: (root / "config.json").write_text("[]"), "must hold a JSON object, got list"),
        (lambda root: (root / "llm" / "config.json").write_text(""), "config.json is not readable as JSON"),
        (lambda root: change_json(root / "llm" / "config.json", model_type="mistral"), "type qwen2 or llama"),
    ],
)
def test_config_without_a_spec_leaves_files_and_tokens(
    damage: Break, said: str, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy)

    code, page = inspect_json(capsys, copy)

    assert code == 1
    assert page["spec"] is None
    assert said in page["faults"][0]
    assert [part["files"] for part in page["parts"]] == [1, 1, 2]
    assert [token["is_in_table"] for token in page["tokens"]] == [None] * 5
    assert inspect(capsys, copy)[0] == 1


def test_missing_part_leaves_the_spec_of_the_embedded_config(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "vision_tower")

    code, told = inspect(capsys, copy)

    assert code == 1
    assert "unknown layout" in told
    assert " fault: " in told
    assert "SigLIP, 64 wide" in told


def test_flat_layout_without_its_file_or_tokenizer_is_told(flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (flat / "model.safetensors").unlink()
    (flat / "vocab.json").unlink()

    code, page = inspect_json(capsys, flat)

    assert code == 1
    assert page["spec"] is None
    assert ["weights are missing" in page["faults"][0], "vocab.json is missing" in page["faults"][1]] == [True, True]
    assert len(page["faults"]) == 2


def test_media_ids_at_odds_with_the_tokenizer_are_told(flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_json(flat / "config.json", image_token_id=7)

    code, page = inspect_json(capsys, flat)

    assert code == 1
    assert "image_token_id is 7 in config.json but 290 by the tokenizer" in page["faults"][0]


@pytest.mark.parametrize("name", ["NVILA-9B", "/nowhere"])
def test_no_checkpoint_at_all_is_bad_input(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", name]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert f"no checkpoint at '{name}'" in err


def test_folder_without_a_config_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", str(tmp_path)]) == 2

    assert "config.json, found none" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_faults_and_may_be_left_unread(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["layers.1.bias"][3] = np.nan
        tensors["layers.2.bias"][0] = np.inf

    change_tensors(copy / PROJECTOR, spoil)

    code, out = inspect(capsys, copy)
    assert code == 1
    assert "mm_projector.layers.1.bias in" in out
    assert "the first is nan at [3]" in out
    assert "mm_projector.layers.2.bias in" in out
    assert inspect(capsys, copy, "--no-weights")[0] == 0
