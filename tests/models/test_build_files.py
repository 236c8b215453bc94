"""A build holds what was put in, to the bit, and one that was not finished or was changed is refused by name."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.models.build import (
    StoredWeights,
    exclusive_lock,
    open_build,
    rewrite_plans,
    spec_from_dict,
    to_tensors,
    write_manifest,
)
from nvila_ros.models.checkpoint import open_checkpoint, read_header
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight, pack_nibbles, unpack_nibbles
from tests.golden_cases import GOLDEN

SPEC = open_checkpoint(GOLDEN / "s2" / "ckpt").spec
RNG = np.random.default_rng(0)


def int4(num_inputs: int = 8, num_outputs: int = 6, num_groups: int = 2) -> Int4Weight:
    values = RNG.integers(-8, 8, (num_inputs, num_outputs)).astype(np.int8)
    return Int4Weight(values, RNG.uniform(0.1, 1, (num_groups, num_outputs)).astype(np.float32))


def int8(input_scale: float | None) -> Int8Weight:
    values = RNG.integers(-127, 128, (8, 6)).astype(np.int8)
    return Int8Weight(values, RNG.uniform(0.1, 1, 6).astype(np.float32), input_scale)


WEIGHTS: dict[str, Weight] = {
    "llm.four.weight": int4(),
    "llm.eight.weight": int8(None),
    "vision_tower.eight.weight": int8(0.25),
    "llm.float.weight": RNG.normal(size=(3, 4)).astype(np.float16),
    "llm.norm.weight": RNG.normal(size=4).astype(np.float32),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = {name: array for key, weight in WEIGHTS.items() for name, array in to_tensors(key, weight).items()}
    save_file(tensors, tmp_path / "llm-00001.safetensors")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.json").write_text("{}")
    write_manifest(tmp_path, SPEC, "w8a8+w4a16", {"name": "mine"}, "of-mine")
    return tmp_path


@given(num_inputs=st.integers(1, 9), num_pairs=st.integers(1, 9), seed=st.integers(0, 99))
def test_nibbles_come_back_to_the_bit(num_inputs: int, num_pairs: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(-8, 8, (num_inputs, 2 * num_pairs)).astype(np.int8)

    packed = pack_nibbles(values)

    assert packed.dtype == np.uint8
    assert packed.nbytes == values.size // 2
    first, second = int(values[0, 0]) & 0xF, int(values[0, 1]) & 0xF
    assert packed[0, 0] == first | (second << 4)
    assert np.array_equal(unpack_nibbles(packed), values)


def test_build_gives_back_its_spec_and_weights(folder: Path) -> None:
    build = open_build(folder)
    weights = build.weights()

    assert build.spec == SPEC
    assert build.precision == "w8a8+w4a16"
    assert build.tokenizer_folder == folder / "tokenizer"
    assert set(weights) == set(WEIGHTS)
    assert len(weights) == len(WEIGHTS)
    for key, want in WEIGHTS.items():
        got = weights[key]
        assert key in weights
        assert type(got) is type(want)
        if isinstance(want, np.ndarray):
            assert np.array_equal(got, want)
            continue
        assert np.array_equal(got.values_KN, want.values_KN)
        assert np.array_equal(got.dequantize(), want.dequantize())
        assert getattr(got, "input_scale", None) == getattr(want, "input_scale", None)
    assert "llm.four" not in weights


@pytest.mark.parametrize("name", ["lite", "s2", "video"])
def test_spec_survives_json(name: str) -> None:
    spec = open_checkpoint(GOLDEN / name / "ckpt").spec

    assert spec_from_dict(json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


def truncate(folder: Path) -> None:
    path = folder / "llm-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def flip(folder: Path) -> None:
    path = folder / "llm-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def lose(folder: Path) -> None:
    (folder / "tokenizer" / "vocab.json").unlink()


def change_manifest(**values: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (truncate, r"llm-00001.safetensors is not the file that was built"),
        (flip, r"llm-00001.safetensors is not the file that was built"),
        (lose, r"vocab.json is missing; build it again"),
        (change_manifest(format=99), "is a build of format 99, this is 1"),
        (change_manifest(files={"llm-00001.safetensors": {}}), "is not a build's manifest"),
        (change_manifest(files=7), "is not a build's manifest"),
        (change_manifest(spec={}), "is not a build's manifest"),
        (change_manifest(files={"../x": {}}), "names a file outside of its folder"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "not readable as JSON"),
    ],
)
def test_damage_is_refused_by_name(folder: Path, damage: Callable[[Path], None], rule: str) -> None:
    damage(folder)

    with pytest.raises(CheckpointError, match=rule):
        open_build(folder)


def test_rows_of_a_plain_tensor_are_read_where_they_lie(folder: Path) -> None:
    build = open_build(folder)

    mapped = build.map_tensor("llm.float.weight")

    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped[[2, 0]], WEIGHTS["llm.float.weight"][[2, 0]])
    assert np.array_equal(build.map_tensor("llm.norm.weight"), WEIGHTS["llm.norm.weight"])
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1
    with pytest.raises(CheckpointError, match=r"holds no plain llm.four.weight; build it again"):
        build.map_tensor("llm.four.weight")


def test_plans_are_told_beside_what_was_sealed_before(folder: Path) -> None:
    before = open_build(folder)
    assert (before.plans, before.source) == ((), "of-mine")

    rewrite_plans(folder, {"name": "mine", "limits": 1}, [{"part": "decoder"}])

    after = open_build(folder)
    assert after == dataclasses.replace(before, recipe={"name": "mine", "limits": 1}, plans=({"part": "decoder"},))


def test_digest_of_the_weights_tells_each_of_them(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    save_file({"llm.norm.weight": np.ones(4, np.float32)}, other / "llm-00001.safetensors")
    write_manifest(other, SPEC, "fp32", {"name": "mine"}, "of-mine")

    digests = {open_build(path).weights_sha256 for path in (folder, folder, other)}

    assert len(digests) == 2


def test_weights_are_read_only_when_asked_for(folder: Path) -> None:
    tensors = read_header(folder / "llm-00001.safetensors", "")
    weights = StoredWeights(tensors)
    (folder / "llm-00001.safetensors").unlink()

    assert "llm.four.weight" in weights
    with pytest.raises(CheckpointError, match="llm-00001"):
        weights["llm.four.weight"]


def test_two_builds_never_work_in_one_folder(tmp_path: Path) -> None:
    with exclusive_lock(tmp_path / "build"):
        with pytest.raises(ConfigError, match="another build is at work"), exclusive_lock(tmp_path / "build"):
            pass
        with exclusive_lock(tmp_path / "other"):
            pass

    with exclusive_lock(tmp_path / "build"):
        pass
