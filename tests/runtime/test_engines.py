"""Every backend against torch eager, on random models of both projector kinds."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.export.parts import export_parts
from nvila_ros.generation.decode import decode_greedy
from nvila_ros.models.checkpoint import Checkpoint, open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import DecoderSpec, ModelSpec, ProjectorSpec, VisionSpec
from nvila_ros.runtime.contract import Engine, Tree
from nvila_ros.runtime.onnxruntime.engine import OnnxRuntimeEngine
from nvila_ros.runtime.torch_engine import TorchEngine
from nvila_ros.training.save import save_checkpoint
from tests.golden_cases import CHECKPOINT, assert_near

ATOL_BY_PRECISION = {"fp32": 1e-4}
TOKENIZER = CHECKPOINT / "llm"
STOP = 286
NO_ENCODERS = {"image_encoder": None, "video_encoder": None}


def make_spec(
    projector: str, is_tied: bool, kv_heads: int, groups: int, grid: int = 4, is_vila15: bool = False
) -> ModelSpec:
    return ModelSpec(
        name="random",
        vision=VisionSpec(
            width=32,
            num_layers=3,
            num_heads=2,
            mlp_width=48,
            image_px=14 * grid + 6 * is_vila15,
            patch_px=14,
            num_live_layers=2,
        ),
        projector=ProjectorSpec(
            kind=projector, in_width=32, out_width=16 * kv_heads * groups, is_column_major=is_vila15
        ),
        decoder=DecoderSpec(
            width=16 * kv_heads * groups,
            num_layers=2,
            num_heads=kv_heads * groups,
            num_kv_heads=kv_heads,
            mlp_width=40,
            vocab_size=289,
            rope_theta=1e4,
            is_tied=is_tied,
            max_positions=128,
            has_bias=not is_vila15,
        ),
        image_mode="resize",
        num_video_frames=8,
        dtype="bfloat16",
    )


def make_checkpoint(folder: Path, spec: ModelSpec, seed: int) -> Checkpoint:
    torch.manual_seed(seed)
    files = folder / "tokenizer"
    files.mkdir()
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (files / name).write_bytes((TOKENIZER / name).read_bytes())
    save_checkpoint(Nvila(spec), files, folder / "random")
    if not spec.decoder.has_bias:  # as VILA 1.5 says it, which is all that its configs do
        for name, changes in (("llm/config.json", {"model_type": "llama"}), ("config.json", NO_ENCODERS)):
            path = folder / "random" / name
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return open_checkpoint(folder / "random")


def both(checkpoint: Checkpoint) -> tuple[OnnxRuntimeEngine, TorchEngine]:
    return OnnxRuntimeEngine(checkpoint, threads=1), TorchEngine(checkpoint)


def assert_same_at_every_stage(got: Engine, want: Engine, lengths: list[int], seed: int) -> None:
    """Compare a float engine with another of the same model: tiles, and a sequence in calls of the given lengths."""
    spec, atol = want.spec, ATOL_BY_PRECISION[got.precision]
    rng = np.random.default_rng(seed)
    tile_NCHW = rng.uniform(-1, 1, (2, 3, spec.vision.image_px, spec.vision.image_px)).astype(np.float32)

    feat_NPE = want.vision(tile_NCHW)
    assert_near("features", got.vision(tile_NCHW), feat_NPE, atol)
    assert_near("visual tokens", got.project(feat_NPE), want.project(feat_NPE), atol)
    got_cache, want_cache = got.new_cache(64), want.new_cache(64)
    for length in lengths:
        ids_L = rng.integers(0, spec.decoder.vocab_size, length)
        assert_near("embeddings", got.embed(ids_L), want.embed(ids_L), 0)
        logits_V = want.forward(want.embed(ids_L), want_cache)
        assert_near("logits", got.forward(got.embed(ids_L), got_cache), logits_V, atol)
    assert got_cache.length == want_cache.length == sum(lengths)


def assert_tree_matches_runs(
    got: Engine, want: Engine, prefix: int, lengths: list[int], seed: int, atol: float
) -> None:
    """Compare branches after one prefix, interleaved and in two calls, with each branch as a sequence of its own."""
    rng = np.random.default_rng(seed)
    vocab = got.spec.decoder.vocab_size
    head = rng.integers(0, vocab, prefix)
    branches = [rng.integers(0, vocab, length + 1) for length in lengths]
    cache = got.new_cache(max(64, 2 * prefix))
    got.forward(got.embed(head), cache)

    places = rng.permutation([i for i, length in enumerate(lengths) for _ in range(length)])  # branch of each new row
    order = np.array([np.count_nonzero(places[:k] == i) for k, i in enumerate(places)])  # place in its branch
    first = branch_tree(prefix, places, order, [int(np.flatnonzero(places == i)[-1]) for i in range(len(lengths))])
    logits_RV = got.forward_tree(
        got.embed(np.array([branches[i][k] for i, k in zip(places, order, strict=True)])), cache, first
    )
    places, order = np.append(places, np.arange(len(lengths))), np.append(order, lengths)
    second = branch_tree(prefix, places, order, range(len(lengths)), num_old=sum(lengths))
    last_RV = got.forward_tree(got.embed(np.array([branch[-1] for branch in branches])), cache, second)

    for branch, logits_V, last_V in zip(branches, logits_RV, last_RV, strict=True):
        alone = want.new_cache(max(64, 2 * prefix))
        want.forward(want.embed(head), alone)
        assert_near("logits", logits_V, want.forward(want.embed(branch[:-1]), alone), atol)
        assert_near("logits", last_V, want.forward(want.embed(branch[-1:]), alone), atol)
    cache.truncate(prefix)
    plain = want.new_cache(max(64, 2 * prefix))
    want.forward(want.embed(head), plain)
    assert_near("logits", got.forward(got.embed(head), cache), want.forward(want.embed(head), plain), atol)


def branch_tree(prefix: int, places: np.ndarray, order: np.ndarray, wanted: Iterable[int], num_old: int = 0) -> Tree:
    """Return the tree of the rows from `num_old` on, given the branch and the place of each row after the prefix."""
    same = (places[:, None] == places) & (order <= order[:, None])
    sees_LM = np.concatenate([np.ones((len(places), prefix), bool), same], axis=1)[num_old:]
    return Tree((prefix + order[num_old:]).astype(np.int64), sees_LM, np.array(list(wanted)))


def assert_copied_prefix_goes_on(engine: Engine) -> None:
    """Compare a cache that copied another's prefix with one that was filled again."""
    ids_L = np.random.default_rng(3).integers(0, engine.spec.decoder.vocab_size, 20)
    source, copied, fresh = engine.new_cache(24), engine.new_cache(40), engine.new_cache(24)
    engine.forward(engine.embed(ids_L), source)

    copied.copy_prefix(source, 11)
    got = engine.forward(engine.embed(ids_L[:4]), copied)

    engine.forward(engine.embed(ids_L[:11]), fresh)
    want = engine.forward(engine.embed(ids_L[:4]), fresh)
    assert_near("logits", got, want, 1e-4)
    assert (copied.length, source.length) == (15, 20)


def assert_appends_without_logits(engine: Engine) -> None:
    """Compare rows that were appended for their keys and values alone with a run that returned logits."""
    ids_L = np.random.default_rng(3).integers(0, engine.spec.decoder.vocab_size, 12)
    tree = Tree(np.arange(11), np.tri(11, dtype=bool), np.array([], np.int64))
    cache, plain = engine.new_cache(12), engine.new_cache(12)

    logits_RV = engine.forward_tree(engine.embed(ids_L[:11]), cache, tree)

    assert logits_RV.shape == (0, engine.spec.decoder.vocab_size)
    engine.forward(engine.embed(ids_L[:11]), plain)
    got, want = (engine.forward(engine.embed(ids_L[11:]), each) for each in (cache, plain))
    assert_near("logits", got, want, 1e-4)


@pytest.fixture(scope="module")
def engine() -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(open_checkpoint(CHECKPOINT), threads=1)


@settings(max_examples=8, deadline=None)
@given(
    projector=st.sampled_from(["mlp_downsample", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"]),
    is_tied=st.booleans(),
    kv_heads=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 3]),
    grid=st.sampled_from([3, 4]),
    is_vila15=st.booleans(),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_onnxruntime_matches_torch_at_every_stage(
    tmp_path_factory: pytest.TempPathFactory,
    projector: str,
    is_tied: bool,
    kv_heads: int,
    groups: int,
    grid: int,
    is_vila15: bool,
    lengths: list[int],
    seed: int,
) -> None:
    spec = make_spec("mlp_downsample" if is_vila15 else projector, is_tied, kv_heads, groups, grid, is_vila15)
    got, want = both(make_checkpoint(tmp_path_factory.mktemp("ckpt"), spec, seed))
    assert_same_at_every_stage(got, want, lengths, seed)


@settings(max_examples=10, deadline=None)
@given(prefix=st.integers(1, 30), first=st.integers(1, 10), second=st.integers(1, 10))
def test_prefix_cut_back_to_gives_what_a_fresh_one_gives(
    engine: OnnxRuntimeEngine, prefix: int, first: int, second: int
) -> None:
    rng = np.random.default_rng(prefix)
    head, tail, other = (engine.embed(rng.integers(0, 289, n)) for n in (prefix, first, second))
    cache, fresh = engine.new_cache(64), engine.new_cache(64)

    engine.forward(head, cache)
    engine.forward(tail, cache)
    cache.truncate(prefix)
    got = engine.forward(other, cache)

    engine.forward(head, fresh)
    assert np.array_equal(got, engine.forward(other, fresh))


def test_greedy_decoding_stops_at_the_stop_token(engine: OnnxRuntimeEngine) -> None:
    cache = engine.new_cache(16)
    logits_V = np.zeros(289, np.float32)
    logits_V[STOP] = 1

    assert list(decode_greedy(engine, logits_V, cache, stop_ids={STOP}, never=np.array([], np.int64))) == []


def test_ids_that_must_not_be_sampled_never_are(engine: OnnxRuntimeEngine) -> None:
    logits_V = np.arange(289, dtype=np.float32)

    tokens = decode_greedy(engine, logits_V, engine.new_cache(1), stop_ids={STOP}, never=np.array([288, 287]))

    assert list(tokens) == []  # 286 is the stop token and next in line


def test_exported_files_run_where_they_lie(tmp_path: Path, engine: OnnxRuntimeEngine) -> None:
    paths = export_parts(open_checkpoint(CHECKPOINT), tmp_path / "parts")

    session = onnxruntime.InferenceSession(str(tmp_path / "parts" / "vision.onnx"), providers=["CPUExecutionProvider"])

    tile_NCHW = np.random.default_rng(2).uniform(-1, 1, (1, 3, 112, 112)).astype(np.float32)
    assert_near("features", session.run(None, {"tile": tile_NCHW})[0], engine.vision(tile_NCHW), 1e-6)
    assert all(path.is_file() for path in paths)
    assert sum(path.stat().st_size for path in paths if path.suffix == ".onnx") < 200_000


def test_spec_whose_parts_do_not_fit_is_refused() -> None:
    spec = make_spec("mlp_downsample", True, 2, 1)
    with pytest.raises(ValueError, match="projector must write the decoder's width"):
        dataclasses.replace(spec, projector=dataclasses.replace(spec.projector, out_width=8))


def test_onnxruntime_telemetry_is_off_before_it_loads() -> None:
    code = (
        "import builtins, os, sys\n"
        "load = builtins.__import__\n"
        "def watch(name, *args):\n"
        "    if name == 'onnxruntime' and name not in sys.modules:\n"
        "        print(os.environ.get('ORT_DISABLE_TELEMETRY'))\n"
        "    return load(name, *args)\n"
        "builtins.__import__ = watch\n"
        "import nvila_ros.runtime.onnxruntime.engine\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}

    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)

    assert done.stdout == "1\n"


@functools.cache
def open_engine(kind: type[Engine]) -> Engine:
    return kind(open_checkpoint(CHECKPOINT))


@pytest.mark.parametrize("kind", [TorchEngine, OnnxRuntimeEngine])
@settings(max_examples=10, deadline=None)
@given(prefix=st.integers(1, 20), lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_branches_of_a_tree_get_what_each_gets_alone(
    kind: type[Engine], prefix: int, lengths: list[int], seed: int
) -> None:
    got, want = open_engine(kind), open_engine(TorchEngine)
    assert_tree_matches_runs(got, want, prefix, lengths, seed, ATOL_BY_PRECISION[got.precision])


@pytest.mark.parametrize("kind", [TorchEngine, OnnxRuntimeEngine])
def test_copied_prefix_goes_on_as_its_source(kind: type[Engine]) -> None:
    assert_copied_prefix_goes_on(open_engine(kind))


@pytest.mark.parametrize("kind", [TorchEngine, OnnxRuntimeEngine])
def test_tree_of_which_nothing_is_wanted_is_appended(kind: type[Engine]) -> None:
    assert_appends_without_logits(open_engine(kind))
