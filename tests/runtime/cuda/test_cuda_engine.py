"""The backend on a GPU, on torch's CPU device: each stage against torch eager, with steps replayed by a stand-in."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_ros.errors import BackendError, ShapeError
from nvila_ros.models.build import open_build
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.quantization.simulate import load as load_simulated
from nvila_ros.runtime import loading
from nvila_ros.runtime.contract import Engine, TopEngine
from nvila_ros.runtime.cuda import steps
from nvila_ros.runtime.cuda.device import choose_dtype
from nvila_ros.runtime.cuda.engine import CudaEngine
from nvila_ros.runtime.loading import load_engine
from nvila_ros.runtime.torch_engine import TorchEngine
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.types import Frame, Query
from nvila_ros.world.questions import EVAL_KINDS, eval_case
from nvila_ros.world.rendering import render
from tests.golden_cases import CHECKPOINT, assert_near
from tests.runtime.cuda.graph_standin import CaptureError, capture
from tests.runtime.rounded_build import write_rounded_build
from tests.runtime.test_engines import (
    assert_appends_without_logits,
    assert_copied_prefix_goes_on,
    assert_same_at_every_stage,
    assert_tree_matches_runs,
    make_checkpoint,
    make_spec,
)

CPU = torch.device("cpu")
TINY = Path(__file__).parents[3] / "checkpoints" / "nvila-tiny"


@functools.cache
def open_engine(dtype: torch.dtype = torch.float32, with_graphs: bool = True) -> CudaEngine:
    return CudaEngine(open_checkpoint(CHECKPOINT), CPU, dtype, capture if with_graphs else None)


@settings(max_examples=6, deadline=None)
@given(
    projector=st.sampled_from(["mlp_downsample", "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"]),
    is_tied=st.booleans(),
    kv_heads=st.sampled_from([1, 2]),
    groups=st.sampled_from([1, 3]),
    grid=st.sampled_from([3, 4]),
    lengths=st.lists(st.sampled_from([1, 1, 1, 2, 7]), min_size=1, max_size=12),
    seed=st.integers(0, 99),
)
def test_every_stage_is_that_of_torch_eager(
    tmp_path_factory: pytest.TempPathFactory,
    projector: str,
    is_tied: bool,
    kv_heads: int,
    groups: int,
    grid: int,
    lengths: list[int],
    seed: int,
) -> None:
    spec = make_spec(projector, is_tied, kv_heads, groups, grid)
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("ckpt"), spec, seed)

    got = CudaEngine(checkpoint, CPU, torch.float32, capture)

    assert_same_at_every_stage(got, TorchEngine(checkpoint), lengths, seed)


@settings(max_examples=6, deadline=None)
@given(prefix=st.integers(1, 20), lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_branches_of_a_tree_get_what_each_gets_alone(prefix: int, lengths: list[int], seed: int) -> None:
    assert_tree_matches_runs(open_engine(), TorchEngine(open_checkpoint(CHECKPOINT)), prefix, lengths, seed, 1e-4)


@pytest.mark.parametrize("check", [assert_copied_prefix_goes_on, assert_appends_without_logits])
def test_prefixes_are_copied_and_appended_on_the_device(check: Callable[[Engine], None]) -> None:
    check(open_engine())


@pytest.mark.parametrize("num_rows", [4, 256])
def test_replayed_steps_equal_eager_ones_over_every_size_and_behind_a_cut(
    monkeypatch: pytest.MonkeyPatch, num_rows: int
) -> None:
    monkeypatch.setattr(steps, "ROWS", num_rows)
    replayed, eager = open_engine(), open_engine(with_graphs=False)
    ids = np.random.default_rng(1).integers(0, 289, 40)
    caches = [engine.new_cache(40) for engine in (replayed, eager)]

    for i in [*range(30), *range(11, 40)]:
        if i == 11:
            for cache in caches:
                cache.truncate(min(11, cache.length))
        got, want = (
            engine.forward(engine.embed(ids[i : i + 1]), cache)
            for engine, cache in zip((replayed, eager), caches, strict=True)
        )
        assert_near(f"logits of step {i}", got, want, 1e-5)
    assert any(callable(graph) for graph in caches[0].graphs.values())
    assert not any(callable(graph) for graph in caches[1].graphs.values())


def test_answers_of_few_tokens_capture_nothing() -> None:
    engine = open_engine()
    cache = engine.new_cache(40)

    for _ in range(steps.EAGER_STEPS):
        engine.forward(engine.embed(np.array([5])), cache)

    assert not any(callable(graph) for graph in cache.graphs.values())


def test_stand_in_ends_a_capture_that_reads_a_value_on_the_host() -> None:
    with pytest.raises(CaptureError, match="reads a value on the host"):
        capture(lambda: torch.ones(1).item())


def test_likeliest_tokens_are_those_of_all_logits() -> None:
    engine = open_engine()
    assert isinstance(engine, TopEngine)
    cache = engine.new_cache(16)

    for length in (5, 1, 1, 1, 1, 1):
        ids, logits = engine.forward_top(engine.embed(np.arange(length)), cache)
        all_logits = engine.fetch_logits()
        order = np.argsort(-all_logits, kind="stable")[: len(ids)]
        assert np.array_equal(all_logits[ids], logits)
        assert np.array_equal(np.sort(logits)[::-1], all_logits[order])


def test_full_cache_and_positions_beyond_the_model_are_refused() -> None:
    engine = open_engine()
    embeds = engine.embed(np.arange(3))

    with pytest.raises(ShapeError, match="the cache holds 2 tokens, 3 are needed"):
        engine.forward(embeds, engine.new_cache(2))
    long = engine.new_cache(engine.spec.decoder.max_positions + 3)
    long.length = engine.spec.decoder.max_positions
    with pytest.raises(ShapeError, match="positions must be in"):
        engine.forward(embeds, long)


def test_likeliest_tokens_in_bfloat16_are_those_of_the_reference() -> None:
    half, exact = open_engine(torch.bfloat16), TorchEngine(open_checkpoint(CHECKPOINT))
    ids = np.random.default_rng(4).integers(0, 289, 24)
    caches = half.new_cache(64), exact.new_cache(64)

    num_sure = 0
    for call in (ids, *ids[:, None]):
        got, want = (
            engine.forward(engine.embed(call), cache) for engine, cache in zip((half, exact), caches, strict=True)
        )
        # Each of some twenty roundings to 8 bits is off by 2^-9; together they reached 0.051 of the largest logit.
        bound = 2**-4 * float(np.abs(want).max())
        assert_near("logits", got, want, bound)
        second, first = np.sort(want)[-2:]
        num_sure += first - second > 2 * bound
        assert got.argmax() == want.argmax() or first - second <= 2 * bound
    assert half.precision == "bf16"
    assert num_sure


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rounded_build(tmp_path_factory.mktemp("builds") / "rounded")


def test_quantized_build_computes_as_the_simulation(quantized: Path) -> None:
    build = open_build(quantized)
    got, want = CudaEngine(build, CPU, torch.float32, capture), load_simulated(build, threads=1)
    rng = np.random.default_rng(2)
    px = build.spec.vision.image_px
    tile_NCHW = rng.uniform(-1, 1, (1, 3, px, px)).astype(np.float32)
    feat_NPE = want.vision(tile_NCHW)
    ids = rng.integers(0, 400, 20)

    # An activation that rounds to another level moves a feature by its scale times a weight.
    assert_near("features", got.vision(tile_NCHW), feat_NPE, 0.05 * float(feat_NPE.std()))
    assert_near("visual tokens", got.project(feat_NPE), want.project(feat_NPE), 1e-3)
    caches = got.new_cache(32), want.new_cache(32)
    logits = [engine.forward(engine.embed(ids), cache) for engine, cache in zip((got, want), caches, strict=True)]
    assert_near("logits", logits[0], logits[1], 2e-3 * float(np.abs(logits[1]).max()))
    assert got.precision == "w8a8+w4a16"


@pytest.mark.slow
def test_nvila_tiny_answers_in_bfloat16_as_in_float32() -> None:
    checkpoint = open_checkpoint(TINY)
    tokenizer = ChatTokenizer.from_folder(checkpoint.tokenizer_folder)
    engine = CudaEngine(checkpoint, CPU, choose_dtype(checkpoint.spec), capture)
    half, exact = (
        VisionLanguageModel(each, tokenizer, backend="cuda") for each in (engine, load_engine(checkpoint, "torch", 1))
    )
    same, num_asked = 0, 0
    for kind in EVAL_KINDS:
        for index in range(30_000, 30_004):
            case = eval_case(kind, index)
            frames = [Frame(image=render(case.scene, t_s, 640, 480), stamp_ns=round(t_s * 1e9)) for t_s in case.times_s]
            query = Query(query_id=kind, question=case.question.text, num_frames=len(frames), max_tokens=16)
            same += half.answer(query, frames).text == exact.answer(query, frames).text
            num_asked += 1

    assert same >= num_asked - 1


def test_machine_without_a_gpu_is_told_what_to_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")

    with pytest.raises(
        BackendError, match=r"backend cuda cannot run nvila-tiny: torch .* sees no GPU; install the torch"
    ):
        load_engine(open_checkpoint(TINY), "cuda")


def test_auto_takes_the_gpu_only_where_it_holds_the_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = open_checkpoint(TINY)
    caplog.set_level("INFO")
    monkeypatch.setattr(loading, "GPU_FILES", (tmp_path / "nvidia0",))

    assert loading.choose_backend(checkpoint) == "onnxruntime"
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for free, backend in ((1 << 20, "onnxruntime"), (1 << 34, "cuda")):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda free=free: (free, 1 << 34))
        assert loading.choose_backend(checkpoint) == backend
    assert "this machine has no NVIDIA GPU" in caplog.text
    assert "the GPU has 0.0 GiB free and nvila-tiny needs about" in caplog.text
