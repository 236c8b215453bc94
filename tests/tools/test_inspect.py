"""`nvila inspect` says what a checkpoint is, and of a broken one all that can be said and what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvila_ros.errors import CheckpointError
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.variants import VARIANTS
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.tools import cli
from tests.golden_cases import CHECKPOINT

Break = Callable[[Path], object]
FLAT_CONFIGS = {"text": "llm", "vision": "vision_tower"}
PROJECTOR = Path("mm_projector") / "model.safetensors"
TSP = '{"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[4, 1, 1]]}'


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(CHECKPOINT, tmp_path / "ckpt"))


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """The golden checkpoint in the flat layout, with its tokenizer."""
    root = tmp_path / "flat"
    root.mkdir()
    tensors = {}
    for part in ("llm", "vision_tower", "mm_projector"):
        for file in (CHECKPOINT / part).glob("*.safetensors"):
            tensors |= {f"{part}.{key}": array for key, array in load_file(file).items()}
    save_file(tensors, root / "model.safetensors")
    configs = {f"{name}_config": read_json(CHECKPOINT / part / "config.json") for name, part in FLAT_CONFIGS.items()}
    write_json(root / "config.json", {"model_type": "nvila_lite", "image_token_id": 290, **configs})
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        shutil.copy(CHECKPOINT / "llm" / name, root)
    return root


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def write_json(path: Path, values: object) -> None:
    path.write_text(json.dumps(values))


def change_json(path: Path, **values: object) -> None:
    write_json(path, read_json(path) | values)


def change_tensors(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def load(root: Path) -> None:
    """Load as the node does, which must refuse what is told to be at fault."""
    checkpoint = open_checkpoint(root)
    checkpoint.weights()
    ChatTokenizer.from_folder(checkpoint.tokenizer_folder)


def inspect(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str]:
    """Return exit code and output, with lines joined as they were before they were fitted to a width."""
    code = cli.main(["inspect", *map(str, argv)])
    return code, " ".join(capsys.readouterr().out.split())


def inspect_json(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict[str, Any]]:
    code = cli.main(["inspect", *map(str, argv), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_sound_checkpoint_is_told_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = inspect(capsys, CHECKPOINT)

    assert code == 0
    assert " fault: " not in told
    for said in (
        "original layout",
        "dimensions of no published variant",
        "mlp_downsample_3x3_fix, 3x3",
        "1, 1 dead",
        "BF16, 210.18 kB, 2 files",
        "1 to 12 tiles of 112 px",
        "image 1920x1080 4 x 2 9 81 99",
        "clip of 8 frames 8 72 80",
        "<|im_end|> 286 row of the embedding table, ends an answer",
        "<image> 290 outside the embedding table",
        "sound: ",
    ):
        assert said in told


def test_page_fits_a_hundred_columns_and_its_last_line_is_not_json(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["inspect", str(CHECKPOINT)])
    cli.main(["inspect"])

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert not lines[-1].startswith("{")


def test_json_says_the_same_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    code, page = inspect_json(capsys, CHECKPOINT)

    assert code == 0
    assert (page["layout"], page["variant"], page["faults"], page["remarks"]) == ("original", None, [], [])
    assert [part["parameters"] for part in page["parts"]] == [71136, 128832, 105088]
    assert [part["files"] for part in page["parts"]] == [1, 1, 2]
    assert page["clip"] == {"num_frames": 8, "num_tiles": 8, "num_visual": 72, "num_positions": 80}
    assert [token["id"] for token in page["tokens"]] == [285, 286, 289, 290, 291]
    assert [token["is_in_table"] for token in page["tokens"]] == [True, True, False, False, False]


def test_embedded_checkpoint_is_found_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    code, page = inspect_json(capsys, "nvila-tiny")

    assert (code, page["spec"]["name"]) == (0, "nvila-tiny")


@pytest.mark.parametrize("name", VARIANTS)
def test_published_variant_needs_no_files(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, told = inspect(capsys, name)

    assert code == 0
    assert f"published as Efficient-Large-Model/{name}" in told
    assert "memory of live weights" in told
    assert "sound" not in told


def test_family_is_told_without_an_argument(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = inspect(capsys)
    _, page = inspect_json(capsys)

    assert code == 0
    assert all(name in told for name in VARIANTS)
    assert [each["variant"] for each in page["family"]] == list(VARIANTS)


def test_checkpoint_with_a_variants_dimensions_is_known(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variant = VARIANTS["NVILA-Lite-2B"]
    vision, decoder = variant.spec.vision, variant.spec.decoder
    change_json(copy / "config.json", mm_hidden_size=vision.width)
    change_json(
        copy / "vision_tower" / "config.json",
        hidden_size=vision.width,
        num_hidden_layers=vision.num_layers,
        num_attention_heads=vision.num_heads,
        intermediate_size=vision.mlp_width,
        image_size=vision.image_px,
    )
    change_json(
        copy / "llm" / "config.json",
        hidden_size=decoder.width,
        num_hidden_layers=decoder.num_layers,
        num_attention_heads=decoder.num_heads,
        num_key_value_heads=decoder.num_kv_heads,
        intermediate_size=decoder.mlp_width,
    )

    code, told = inspect(capsys, copy)

    assert code == 1  # the weights are still the small ones
    assert "dimensions and kinds of NVILA-Lite-2B" in told


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
    assert said in told.partition(" fault: ")[2]
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
        (lambda root: change_json(root / "llm" / "config.json", model_type="llama"), "must be of type qwen2"),
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


def test_flat_layout_is_told_with_what_it_leaves_open(flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, page = inspect_json(capsys, flat)

    load(flat)
    assert (code, page["layout"], page["faults"]) == (0, "flat", [])
    assert ["a flat config names neither image mode nor pooling" in remark for remark in page["remarks"]] == [True]
    assert [part["files"] for part in page["parts"]] == [1, 1, 1]
    assert [part["bytes_in_files"] for part in page["parts"]] == [201216, 257664, 210176]


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


def test_harmless_oddities_are_remarks(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["layers.1.bias"] = tensors["layers.1.bias"].astype(np.float32)
        tensors["layers.9.extra"] = np.zeros(2, np.float32)

    change_tensors(copy / PROJECTOR, change)
    (copy / "llm" / "pytorch_model.bin").write_bytes(b"")
    change_json(copy / "config.json", num_video_frames=9, video_encoder=TSP)

    code, page = inspect_json(capsys, copy)

    load(copy)
    assert (code, page["faults"]) == (0, [])
    said = " ".join(page["remarks"])
    assert "['pytorch_model.bin'] in" in said
    assert "several dtypes: BF16, F32" in said
    assert "1 tensors in the files belong to no part and are not read, first mm_projector.layers.9.extra" in said
    assert "of the default of 9 the oldest are dropped" in said
    assert page["clip"]["num_frames"] == 8


def test_pooling_is_told_in_words(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_json(copy / "config.json", video_encoder=TSP.replace("[[4, 1, 1]]", "[[2, 1, 1], [4, 3, 3]]"))

    _, told = inspect(capsys, copy)

    assert "the tokens of every 2 frames and again of every 4 frames x 3 x 3 tokens are averaged into one" in told


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
