"""A build holds what was put in, to the bit, and one that was not finished or was changed is refused by name."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from nvila_ros.errors import CheckpointError
from nvila_ros.models.build import (
    StoredWeights,
    manifest_digest,
    open_build,
    rewrite_plans,
    spec_from_dict,
    to_tensors,
    write_manifest,
)
from nvila_ros.models.checkpoint import open_checkpoint, read_header
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight, pack_nibbles, unpack_nibbles
from nvila_ros.models.shapes import HEAD, expected_shapes
from nvila_ros.models.spec import ModelSpec
from tests.golden_cases import GOLDEN

SPEC = open_checkpoint(GOLDEN / "s2" / "ckpt").spec
RNG = np.random.default_rng(0)


LAYER = "llm.model.layers.0"
FOUR, EIGHT = f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.mlp.up_proj.weight"
STATIC = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
EMBED, NORM = "llm.model.embed_tokens.weight", "llm.model.norm.weight"


def int4(num_outputs: int, num_inputs: int, num_groups: int = 2) -> Int4Weight:
    values = RNG.integers(-8, 8, (num_inputs, num_outputs)).astype(np.int8)
    return Int4Weight(values, RNG.uniform(0.1, 1, (num_groups, num_outputs)).astype(np.float32))


def int8(num_outputs: int, num_inputs: int, input_scale: float | None) -> Int8Weight:
    values = RNG.integers(-127, 128, (num_inputs, num_outputs)).astype(np.int8)
    return Int8Weight(values, RNG.uniform(0.1, 1, num_outputs).astype(np.float32), input_scale)


def random_weights() -> dict[str, Weight]:
    """Return every tensor of the model, of each kind of weight at least one."""
    shapes = expected_shapes(SPEC)
    weights: dict[str, Weight] = {key: RNG.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    weights[EMBED] = RNG.normal(size=shapes[EMBED]).astype(np.float16)
    weights[FOUR] = int4(*shapes[FOUR])
    weights[EIGHT] = int8(*shapes[EIGHT], None)
    weights[STATIC] = int8(*shapes[STATIC], 0.25)
    return weights


WEIGHTS = random_weights()


def write_build(folder: Path, weights: Mapping[str, Weight], spec: ModelSpec = SPEC) -> None:
    tensors = {name: array for key, weight in weights.items() for name, array in to_tensors(key, weight).items()}
    save_file(tensors, folder / "llm-00001.safetensors")
    (folder / "tokenizer").mkdir(exist_ok=True)
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    write_manifest(folder, spec, "w8a8+w4a16", {"name": "mine"}, "of-mine")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_build(tmp_path, WEIGHTS)
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
    assert FOUR.removesuffix(".weight") not in weights


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
        manifest = json.loads(path.read_text()) | values
        manifest["sha256"] = manifest_digest(manifest)  # as if the build had written it so
        path.write_text(json.dumps(manifest))

    return damage


def edit_manifest(old: str, new: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return damage


VOCAB = f'"vocab_size": {SPEC.decoder.vocab_size}'


@pytest.mark.parametrize(
    ("damage", "rule"),
    [
        (truncate, r"llm-00001.safetensors is not the file that was built"),
        (flip, r"llm-00001.safetensors is not the file that was built"),
        (lose, r"vocab.json is missing; build it again"),
        (change_manifest(format=99), "is a build of format 99, this is 2"),
        (change_manifest(format=1), "is a build of format 1, this is 2; build it again"),
        (edit_manifest(VOCAB, '"vocab_size": 8'), "manifest.json was edited since the build wrote it; build it again"),
        (edit_manifest('"name": "mine"', '"name": "other"'), "manifest.json was edited"),
        (edit_manifest('"sha256": ', '"sha257": '), "manifest.json was edited"),
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


def smaller(spec: ModelSpec, **sizes: int) -> ModelSpec:
    return dataclasses.replace(spec, decoder=dataclasses.replace(spec.decoder, **sizes))


SHAPES = expected_shapes(SPEC)
D = SPEC.decoder.width


@pytest.mark.parametrize(
    ("spec", "changed", "rule"),
    [
        (smaller(SPEC, vocab_size=8), {}, rf"embed_tokens.weight must be \(8, {D}\) by the manifest's spec, got"),
        (smaller(SPEC, mlp_width=16), {}, rf"gate_proj.weight must be \(16, {D}\) by the manifest's spec, got"),
        (smaller(SPEC, num_layers=99), {}, r"llm.model.layers.\d+.\S+ is missing"),
        (SPEC, {NORM: None}, f"{NORM} is missing"),
        (SPEC, {NORM: np.ones(D + 1, np.float32)}, rf"{NORM} must be \({D},\)"),
        (SPEC, {NORM: np.ones(D, np.float64)}, f"{NORM} must be of F16 or F32, got F64"),
        (SPEC, {EMBED: int8(*SHAPES[EMBED], None)}, f"{EMBED} is quantized, which only linear maps may be"),
        (SPEC, {FOUR: int4(D, D + 8)}, rf"{FOUR}.values must be"),
        (SPEC, {FOUR: int4(D, D, 3)}, f"{FOUR}.scale must have groups that divide the {D} inputs, got 3"),
        (SPEC, {EIGHT: int8(D, D, None)}, rf"{EIGHT}.values must be"),
        (SPEC, {HEAD: int4(6, D)}, f"{HEAD}"),
    ],
)
def test_tensors_that_are_not_those_of_the_spec_are_refused(
    tmp_path: Path, spec: ModelSpec, changed: dict[str, Weight | None], rule: str
) -> None:
    weights = {key: weight for key, weight in (WEIGHTS | changed).items() if weight is not None}
    write_build(tmp_path, weights, spec)

    with pytest.raises(CheckpointError, match=f"is not a whole model: .*{rule}.*build it again"):
        open_build(tmp_path)


@pytest.mark.parametrize(
    ("name", "array", "rule"),
    [
        (f"{FOUR}.scale", np.ones((2, D), np.float16), "must be of F32, got F16"),
        (f"{FOUR}.scale", np.ones((2, D + 2), np.float32), r"must be .* by the manifest's spec, got"),
        (f"{FOUR}.scale", np.ones((), np.float32), "must have groups that divide"),
        (f"{FOUR}.values", np.zeros((D, D), np.int32), "must be of U8, got I32"),
        (f"{EIGHT}.scale", np.ones(1, np.float32), r"must be .* by the manifest's spec, got"),
        (f"{STATIC}.input_scale", np.ones(2, np.float32), r"must be \(1,\)"),
    ],
)
def test_parts_of_a_quantized_weight_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, array: np.ndarray, rule: str
) -> None:
    tensors = {part: value for key, weight in WEIGHTS.items() for part, value in to_tensors(key, weight).items()}
    write_build(tmp_path, WEIGHTS)
    save_file(tensors | {name: array}, tmp_path / "llm-00001.safetensors")
    write_manifest(tmp_path, SPEC, "w8a8+w4a16", {"name": "mine"}, "of-mine")

    with pytest.raises(CheckpointError, match=rf"{name} {rule}"):
        open_build(tmp_path)


def test_rows_of_a_plain_tensor_are_read_where_they_lie(folder: Path) -> None:
    build = open_build(folder)

    mapped = build.map_tensor(EMBED)

    assert isinstance(mapped, np.memmap)
    assert np.array_equal(mapped[[2, 0]], WEIGHTS[EMBED][[2, 0]])
    assert np.array_equal(build.map_tensor(NORM), WEIGHTS[NORM])
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 1
    with pytest.raises(CheckpointError, match=rf"holds no plain {FOUR}; build it again"):
        build.map_tensor(FOUR)


def test_plans_are_told_beside_what_was_sealed_before(folder: Path) -> None:
    before = open_build(folder)
    assert (before.plans, before.source) == ((), "of-mine")

    rewrite_plans(folder, {"name": "mine", "limits": 1}, [{"part": "decoder"}])

    after = open_build(folder)
    assert after == dataclasses.replace(before, recipe={"name": "mine", "limits": 1}, plans=({"part": "decoder"},))


def test_digest_of_the_weights_tells_each_of_them(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    write_build(other, WEIGHTS | {NORM: np.zeros_like(WEIGHTS[NORM])})

    digests = {open_build(path).weights_sha256 for path in (folder, folder, other)}

    assert len(digests) == 2


def test_weights_are_read_only_when_asked_for(folder: Path) -> None:
    tensors = read_header(folder / "llm-00001.safetensors", "")
    weights = StoredWeights(tensors)
    (folder / "llm-00001.safetensors").unlink()

    assert FOUR in weights
    with pytest.raises(CheckpointError, match="llm-00001"):
        weights[FOUR]
