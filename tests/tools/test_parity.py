"""`nvila parity`: equal checkpoints pass, any that differs fails by name, and nothing ends in a traceback."""

import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.torch_engine import TorchEngine
from nvila_ros.tools.cli import main
from nvila_ros.tools.golden import compute, read_case
from tests.golden_cases import ALL_CASES, GOLDEN, VILA15_CASES

VIDEO = ("ckpt", "image.fp32.json", "image.fp32.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One checkpoint with one case, small enough to break in many ways."""
    copy = tmp_path / "mine"
    shutil.copytree(GOLDEN / "video" / "ckpt", copy / "ckpt")
    for name in VIDEO[1:]:
        shutil.copy(GOLDEN / "video" / name, copy)
    (tmp_path / "media").mkdir()
    shutil.copy(GOLDEN / "media" / "wide.png", tmp_path / "media")
    return copy


def parity(capsys: pytest.CaptureFixture[str], folder: Path, *args: str) -> tuple[int, dict, str]:
    code = main(["parity", str(folder), "--threads", "1", *args])
    out = capsys.readouterr().out
    return code, json.loads(out.splitlines()[-1]), out


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_every_golden_case_passes(capsys: pytest.CaptureFixture[str], backend: str) -> None:
    code, told, _ = parity(capsys, GOLDEN, "--backend", backend)

    assert code == 0
    flat = sum(case.startswith("s2/") for case in ALL_CASES)
    assert told["cases"] == len(ALL_CASES) + len(VILA15_CASES) + flat + 2
    assert told["failed"] == 0
    assert told["ids_equal"]
    assert 0 < told["max_error"] <= 1e-4


def change_case(folder: Path, **tensors: np.ndarray) -> None:
    path = folder / "image.fp32.safetensors"
    save_file(load_file(path) | tensors, path)


def test_a_stage_beyond_the_tolerance_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    features = load_file(folder / "image.fp32.safetensors")["vision_features"]
    change_case(folder, vision_features=features + np.float32(2e-4))

    code, told, out = parity(capsys, folder)

    assert (code, told["failed"], told["ids_equal"]) == (1, 1, True)
    assert told["max_error"] == pytest.approx(2e-4, rel=0.1)
    assert "FAILED: beyond the tolerance" in out
    assert parity(capsys, folder, "--atol", "1e-3")[0] == 0


@pytest.mark.parametrize("stage", ["greedy_ids", "input_ids"])
def test_another_id_fails(folder: Path, capsys: pytest.CaptureFixture[str], stage: str) -> None:
    ids = load_file(folder / "image.fp32.safetensors")[stage]
    ids[0, -1] ^= 1
    change_case(folder, **{stage: ids})

    code, told, _ = parity(capsys, folder)

    assert (code, told["failed"], told["ids_equal"]) == (1, 1, False)


def test_a_weight_changed_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "ckpt" / "mm_projector" / "model.safetensors"
    tensors = load_file(path)
    tensors["layers.2.weight"][0, 0] += 1
    save_file(tensors, path)

    assert parity(capsys, folder)[0] == 1


def test_a_case_may_hold_some_stages_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "image.fp32.safetensors"
    save_file({"greedy_ids": load_file(path)["greedy_ids"]}, path)

    assert parity(capsys, folder)[:2] == (
        0,
        {"cases": 1, "failed": 0, "max_error": 0.0, "ids_equal": True, "backend": "onnxruntime"},
    )


def test_tilings_that_differ_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads((GOLDEN / "tiling_448.json").read_text())
    rows[3]["s2_block_rows_cols"].reverse()
    (tmp_path / "tiling_448.json").write_text(json.dumps(rows))

    code, told, out = parity(capsys, tmp_path)

    assert (code, told["failed"]) == (1, 1)
    assert f"1 sizes are cut otherwise, first {rows[3]['w']}x{rows[3]['h']}" in out


def damage_json(folder: Path) -> None:
    (folder / "image.fp32.json").write_text("{")


def lose_tensors(folder: Path) -> None:
    (folder / "image.fp32.safetensors").unlink()


def lose_media(folder: Path) -> None:
    (folder.parent / "media" / "wide.png").unlink()


def damage_media(folder: Path) -> None:
    (folder.parent / "media" / "wide.png").write_bytes(b"no picture")


def announce_a_huge_picture(folder: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b""), b"IEND"]
    framed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    (folder.parent / "media" / "wide.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(framed))


def lose_checkpoint(folder: Path) -> None:
    shutil.rmtree(folder / "ckpt")


def lose_tokenizer(folder: Path) -> None:
    (folder / "ckpt" / "llm" / "vocab.json").unlink()


def truncate_weights(folder: Path) -> None:
    path = folder / "ckpt" / "vision_tower" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (damage_json, "is no golden case"),
        (lose_tensors, "is no golden case"),
        (lose_media, "media/wide.png, which lies in none of its folders"),
        (damage_media, "cannot be read as an image"),
        (announce_a_huge_picture, "px, got 50000x50000"),
        (lose_checkpoint, "no ckpt or ckpt_hf beside its cases"),
        (lose_tokenizer, "vocab.json"),
        (truncate_weights, "truncated or not safetensors"),
    ],
)
def test_what_cannot_be_run_fails_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str], damage: object, named: str
) -> None:
    damage(folder)

    code, told, out = parity(capsys, folder)

    assert (code, told["failed"], told["cases"]) == (1, 1, 1)
    assert named in out


def ask_otherwise(folder: Path, **told: object) -> None:
    path = folder / "image.fp32.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | told))


@pytest.mark.parametrize(
    "told",
    [
        {"question": [5]},
        {"question": ["media/wide.png"], "media": [1]},
        {"media": {"video": [[]]}},
        {"media": {"video": [[-1]]}},
    ],
)
def test_case_out_of_format_fails_by_name(
    folder: Path, capsys: pytest.CaptureFixture[str], told: dict[str, object]
) -> None:
    ask_otherwise(folder, **told)

    code, result, out = parity(capsys, folder)

    assert (code, result["failed"], result["ids_equal"]) == (1, 1, False)
    assert "is no golden case" in out


def record(folder: Path, question: list[str], media: dict[str, object], semantics: str = "release") -> None:
    """Let the torch engine tell what the reference would."""
    ask_otherwise(folder, question=question, media=media, semantics=semantics)
    case = read_case(folder / "image.fp32.json")
    checkpoint = open_checkpoint(folder / "ckpt")
    got = compute(case, TorchEngine(checkpoint), ChatTokenizer.from_folder(checkpoint.tokenizer_folder))
    save_file({name: np.ascontiguousarray(array) for name, array in got.items()}, folder / "image.fp32.safetensors")


@pytest.fixture
def clip(folder: Path) -> Path:
    shutil.copytree(GOLDEN / "media" / "clip", folder / "media" / "clip")
    shutil.copy(GOLDEN / "media" / "small.png", folder / "media")
    return folder


def test_image_before_a_clip_does_not_take_its_frames(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(clip, ["media/small.png", "media/clip", "why"], {"image": [[3, 112, 112]], "video": [[8, 3, 112, 112]]})

    want = load_file(clip / "image.fp32.safetensors")

    assert want["pixel_values"].shape[0] == 1 + 8
    assert {key for key in want if key.startswith("media")} == {"media_embeds.image.0", "media_embeds.video.0"}
    assert parity(capsys, clip)[0] == 0


def test_media_of_one_kind_are_collected_before_the_next(clip: Path) -> None:
    media = {"image": [[3]] * 2, "video": [[8]]}
    record(clip, ["media/small.png", "media/clip", "media/wide.png", "why"], media)
    mixed = load_file(clip / "image.fp32.safetensors")["pixel_values"]

    record(clip, ["media/small.png", "media/wide.png", "media/clip", "why"], media)

    assert np.array_equal(load_file(clip / "image.fp32.safetensors")["pixel_values"], mixed)


def test_video_as_images_is_as_long_as_the_reference_showed_it(clip: Path) -> None:
    record(clip, ["media/clip", "why"], {"image": [[3]] * 5}, semantics="main")

    want = load_file(clip / "image.fp32.safetensors")

    assert want["pixel_values"].shape[0] == 5
    assert want["media_embeds.image.4"].shape == (17, 64)


def test_clip_that_does_not_fill_its_groups_fails_by_name(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ask_otherwise(clip, question=["media/clip", "why"], media={"video": [[12]]})

    assert "clip of 12, which must fill groups" in parity(capsys, clip)[2]


def test_image_alone_needs_no_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(folder, ["media/wide.png"], {"image": [[3]]})

    assert parity(capsys, folder)[0] == 0


def test_case_with_no_stage_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"nothing": np.zeros(1)}, folder / "image.fp32.safetensors")

    assert "holds none of the stages" in parity(capsys, folder)[2]


def test_relative_folder_finds_media_above_it(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)

    assert parity(capsys, Path())[0] == 0


def test_flat_copy_takes_the_layer_from_the_original(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(GOLDEN / "s2", folder / "s2")
    path = folder / "s2" / "ckpt" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mm_vision_select_layer": -1}))
    shutil.copytree(GOLDEN / "media", folder / "media")

    out = parity(capsys, folder)[2]

    rows = [line.split() for line in out.splitlines() if line.startswith(" s2/ckpt")]
    by_case = {(row[0], row[1]): row[2:] for row in rows}
    assert by_case["s2/ckpt", "wide"] == by_case["s2/ckpt_hf", "wide"]


def test_folder_without_cases_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", str(tmp_path)]) == 2
    assert "holds neither *.fp32.json nor tiling*.json" in capsys.readouterr().err
