"""`nvila inspect` says what a checkpoint is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nvila_ros.models.variants import VARIANTS
from nvila_ros.tools import cli
from tests.golden_cases import CHECKPOINT
from tests.tools.inspecting.checkpoints import PROJECTOR, change_json, change_tensors, inspect, inspect_json, load

TSP = '{"_target_": "llava.model.encoders.TSPVideoEncoder", "pool_sizes": [[4, 1, 1]]}'


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
    assert f"published as {VARIANTS[name].repos[0]}" in told
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


def test_flat_layout_is_told_with_what_it_leaves_open(flat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, page = inspect_json(capsys, flat)

    load(flat)
    assert (code, page["layout"], page["faults"]) == (0, "flat", [])
    assert ["a flat config names neither image mode nor pooling" in remark for remark in page["remarks"]] == [True]
    assert [part["files"] for part in page["parts"]] == [1, 1, 1]
    assert [part["bytes_in_files"] for part in page["parts"]] == [201216, 257664, 210176]


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
