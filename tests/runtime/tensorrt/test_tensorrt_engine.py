"""The engine over a device made of this machine's memory, against torch: pointers, shapes, branches, graphs."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nvila_ros.errors import BackendError, ShapeError
from nvila_ros.export.forms import TRT_BASE, TRT_KV, GraphForm
from nvila_ros.export.parts import write_parts
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import ModelSpec
from nvila_ros.runtime.contract import Tree
from nvila_ros.runtime.tensorrt.builder import Limits, part_profiles
from nvila_ros.runtime.tensorrt.cuda import Cuda
from nvila_ros.runtime.tensorrt.engine import TensorRtEngine
from tests.export.random_models import make_spec, weights_of
from tests.export.test_forms import assert_close, needs_opset_24
from tests.runtime.tensorrt.fake_tensorrt import FakeCudart, fake_tensorrt
from tests.runtime.test_engines import assert_tree_matches_runs

LIMITS = Limits(max_tiles=2, max_chunk=8, max_rows=3, capacity=64)
PARTS = ("vision", "projector", "decoder")
TOLERANCE = 5e-3
forms = pytest.mark.parametrize(
    "form", [pytest.param(TRT_BASE, id="trt_base"), pytest.param(TRT_KV, id="trt_kv", marks=needs_opset_24)]
)


def load(
    folder: Path, form: GraphForm, head_size: int = 64, can_capture: bool = True, is_rtx: bool = False
) -> tuple[TensorRtEngine, Nvila, FakeCudart]:
    torch.manual_seed(0)
    spec: ModelSpec = make_spec("mlp_downsample_3x3_fix", True, 2, 2, 4, head_size)
    model = Nvila(spec).eval().requires_grad_(False)
    write_parts(spec, weights_of(model), folder, [TRT_BASE, form])
    plans = {part: str(folder / form.file_of(part)).encode() for part in PARTS}
    cudart = FakeCudart(can_capture)
    trt = fake_tensorrt({part: part_profiles(spec, part, form, LIMITS) for part in PARTS}, cudart, is_rtx)
    embedding_VD = model.llm.model["embed_tokens"].weight.numpy().astype(np.float16)
    return TensorRtEngine(spec, plans, embedding_VD, form, LIMITS, "fp16", trt, Cuda(cudart)), model, cudart


@forms
def test_every_stage_matches_torch(tmp_path: Path, form: GraphForm) -> None:
    engine, model, _ = load(tmp_path, form)
    tile_NCHW = np.random.default_rng(0).uniform(-1, 1, (5, 3, 56, 56)).astype(np.float32)

    feat_NPE = engine.vision(tile_NCHW)

    want = model.vision(torch.from_numpy(tile_NCHW))
    assert_close("features", feat_NPE, want.numpy(), TOLERANCE)
    assert_close("visual tokens", engine.project(want.numpy()), model.project(want).numpy(), TOLERANCE)


@forms
def test_chunks_steps_and_rollback_match_torch(tmp_path: Path, form: GraphForm) -> None:
    engine, model, _ = load(tmp_path, form)
    ids_L = np.random.default_rng(1).integers(0, 90, 32)
    want_LV = model.llm.head(model.llm(torch.from_numpy(engine.embed(ids_L))[None]))[0].numpy()
    cache = engine.new_cache(32)

    for start, end in ((0, 20), (20, 21), (21, 22), (22, 27), (27, 32)):
        assert_close("logits", engine.forward(engine.embed(ids_L[start:end]), cache), want_LV[end - 1], TOLERANCE)
    cache.truncate(12)
    assert_close("logits", engine.forward(engine.embed(ids_L[12:13]), cache), want_LV[12], TOLERANCE)
    assert cache.length == 13


@forms
def test_first_token_may_come_alone(tmp_path: Path, form: GraphForm) -> None:
    engine, model, _ = load(tmp_path, form)
    embeds_LD = engine.embed(np.array([5]))

    got = engine.forward(embeds_LD, engine.new_cache(32))

    want = model.llm.head(model.llm(torch.from_numpy(embeds_LD)[None]))[0, 0].numpy()
    assert_close("logits", got, want, TOLERANCE)


@forms
def test_no_memory_is_taken_after_the_first_call_and_all_is_given_back(tmp_path: Path, form: GraphForm) -> None:
    engine, _, cudart = load(tmp_path, form)
    cache = engine.new_cache(32)
    engine.forward(engine.embed(np.array([1])), cache)
    num_taken = cudart.num_taken

    for length in (8, 1, 1, 5):
        engine.forward(engine.embed(np.arange(length)), cache)
    assert cudart.num_taken == num_taken
    del cache, engine
    assert not cudart.held


@forms
def test_tokens_beyond_the_cache_are_refused(tmp_path: Path, form: GraphForm) -> None:
    engine, _, _ = load(tmp_path, form)

    with pytest.raises(ShapeError, match="cache holds 64 tokens, 65 are needed"):
        engine.forward(engine.embed(np.zeros(65, np.int64)), engine.new_cache(64))
    with pytest.raises(BackendError, match="plans have room for 64 tokens, 65 needed; ask less"):
        engine.new_cache(65)


def test_rows_that_would_lie_askew_are_refused(tmp_path: Path) -> None:
    engine, _, _ = load(tmp_path, TRT_BASE, head_size=16)
    cache = engine.new_cache(32)
    engine.forward(engine.embed(np.arange(3)), cache)

    with pytest.raises(BackendError, match="new_k_0 must lie at a multiple of 256"):
        engine.forward(engine.embed(np.arange(1)), cache)


def torch_logits(model: Nvila, embeds_LD: np.ndarray) -> np.ndarray:
    return model.llm.head(model.llm(torch.from_numpy(embeds_LD)[None]))[0].numpy()


@forms
def test_branches_of_a_tree_get_what_each_gets_alone(tmp_path: Path, form: GraphForm) -> None:
    engine, _, _ = load(tmp_path, form)

    # 20 tokens of 7 branches: three chunks by their number, and more by the rows that are wanted.
    assert_tree_matches_runs(engine, engine, 5, [3, 1, 4, 2, 5, 3, 2], 0, 2 * TOLERANCE)


@forms
def test_row_beyond_its_chunk_cannot_be_seen(tmp_path: Path, form: GraphForm) -> None:
    engine, _, _ = load(tmp_path, form)
    tree = Tree(np.arange(9), np.ones((9, 9), bool), np.array([8]))

    with pytest.raises(ShapeError, match="a token may not attend to a later one"):
        engine.forward_tree(engine.embed(np.arange(9)), engine.new_cache(16), tree)


@forms
def test_copied_prefix_goes_on_as_its_source(tmp_path: Path, form: GraphForm) -> None:
    engine, model, _ = load(tmp_path, form)
    ids_L = np.random.default_rng(3).integers(0, 90, 20)
    source, copied = engine.new_cache(24), engine.new_cache(40)
    engine.forward(engine.embed(ids_L), source)
    embeds_LD = engine.embed(np.concatenate([ids_L[:11], ids_L[:4]]))

    copied.copy_prefix(source, 11)
    got = engine.forward(embeds_LD[11:], copied)

    assert_close("logits", got, torch_logits(model, embeds_LD)[-1], TOLERANCE)
    assert (copied.length, source.length) == (15, 20)
    source.copy_prefix(source, 3)
    assert source.length == 3


@forms
def test_best_are_those_of_all_logits(tmp_path: Path, form: GraphForm) -> None:
    engine, _, _ = load(tmp_path, form)
    cache = engine.new_cache(32)
    ids_L = np.random.default_rng(4).integers(0, 90, 12)

    for chunk in (ids_L[:10], ids_L[10:11], ids_L[11:]):
        ids, logits = engine.forward_top(engine.embed(chunk), cache)
        logits_V = engine.fetch_logits()
        assert np.array_equal(logits, np.sort(logits_V)[::-1][:64])
        assert np.array_equal(logits_V[ids], logits)
    assert cache.length == 12


@needs_opset_24
@pytest.mark.parametrize("is_rtx", [False, True], ids=["tensorrt", "tensorrt_rtx"])
def test_steps_are_captured_once_a_cache_and_say_the_same(tmp_path: Path, is_rtx: bool) -> None:
    engine, model, cudart = load(tmp_path, TRT_KV, is_rtx=is_rtx)
    ids_L = np.random.default_rng(5).integers(0, 90, 24)
    want_LV = torch_logits(model, engine.embed(ids_L))
    caches = [engine.new_cache(32), engine.new_cache(32)]

    for cache in caches:
        engine.forward(engine.embed(ids_L[:8]), cache)
    for i in range(8, 15):
        for cache in caches:  # in turns: each has its own graph, and the context is bound anew
            assert_close("logits", engine.forward(engine.embed(ids_L[i : i + 1]), cache), want_LV[i], TOLERANCE)
    assert (len(cudart.graphs), cudart.num_launched) == (2, 12)
    # A prompt in between takes the other context and leaves the graph as it was.
    caches[0].truncate(4)
    engine.forward(engine.embed(ids_L[4:20]), caches[0])
    assert_close("logits", engine.forward(engine.embed(ids_L[20:21]), caches[0]), want_LV[20], TOLERANCE)
    assert (len(cudart.graphs), cudart.num_launched) == (2, 13)
    del caches, cache
    assert not cudart.graphs


@needs_opset_24
def test_graph_of_other_addresses_is_not_launched(tmp_path: Path) -> None:
    engine, _, cudart = load(tmp_path, TRT_KV)
    first, second = engine.new_cache(32), engine.new_cache(32)
    for cache in (first, second):
        engine.forward(engine.embed(np.arange(3)), cache)
        engine.forward(engine.embed(np.arange(1)), cache)

    second.captured = first.captured
    engine.forward(engine.embed(np.arange(1)), second)

    assert cudart.num_launched == 0
    assert second.captured is not first.captured


@needs_opset_24
def test_device_that_cannot_capture_is_told_once_and_runs_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    engine, model, cudart = load(tmp_path, TRT_KV, can_capture=False)
    ids_L = np.arange(8)
    cache = engine.new_cache(32)
    engine.forward(engine.embed(ids_L[:4]), cache)

    for i in range(4, 8):
        got = engine.forward(engine.embed(ids_L[i : i + 1]), cache)

    assert_close("logits", got, torch_logits(model, engine.embed(ids_L))[-1], TOLERANCE)
    assert [record.message for record in caplog.records] == [
        "steps of one token run without a CUDA graph from here on: cudaStreamEndCapture failed: "
        "cudaErrorStreamCaptureUnsupported; see the driver with nvidia-smi or tegrastats"
    ]
    assert cudart.num_launched == 0


def test_appended_steps_are_not_captured(tmp_path: Path) -> None:
    engine, _, cudart = load(tmp_path, TRT_BASE)
    cache = engine.new_cache(32)

    for _ in range(4):
        engine.forward(engine.embed(np.arange(1)), cache)

    assert not cudart.graphs


def test_prompt_is_bounded_by_what_the_plans_hold(tmp_path: Path) -> None:
    engine, _, _ = load(tmp_path, TRT_BASE)

    assert engine.spec.decoder.max_positions == min(LIMITS.capacity, 64)


def test_work_that_fails_while_it_is_captured_leaves_the_stream_free() -> None:
    cudart = FakeCudart()
    cuda = Cuda(cudart)

    def fail() -> None:
        raise BackendError("a kernel that waits")

    with pytest.raises(BackendError, match="a kernel that waits"):
        cuda.capture(fail)
    cuda.wait()


def test_stand_in_refuses_what_a_capture_does_not_allow() -> None:
    cudart = FakeCudart()
    cuda = Cuda(cudart)

    for illegal in (cuda.wait, lambda: cuda.allocate(1), lambda: cuda.upload(np.zeros(1), 0)):
        with pytest.raises(AssertionError, match="not while a graph is captured"):
            cuda.capture(illegal)
        cudart.captured = None


def test_plan_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    trt = fake_tensorrt({}, FakeCudart())

    with pytest.raises(BackendError, match=r"TensorRT 0.0 cannot load the plan of vision: it gave no reason; build it"):
        TensorRtEngine(
            make_spec("mlp_downsample", True, 2, 2, 4),
            {"vision": str(tmp_path / "none").encode()},
            np.zeros((1, 1)),
            TRT_BASE,
            LIMITS,
            "fp16",
            trt,
            Cuda(FakeCudart()),
        )


def test_call_that_fails_is_told_by_name() -> None:
    cudart = FakeCudart()
    cudart.cudaMalloc = lambda num_bytes: (SimpleNamespace(name="cudaErrorMemoryAllocation"), None)

    with pytest.raises(BackendError, match="cudaMalloc failed: cudaErrorMemoryAllocation"):
        Cuda(cudart).allocate(1)


def test_cuda_is_asked_for_calls_that_it_has() -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    used = {name for name in vars(FakeCudart) if name.startswith("cuda")}

    assert {name for name in used if not hasattr(cudart, name)} == set()
    for holder in ("cudaMemcpyKind", "cudaStreamCaptureMode", "cudaDeviceAttr"):
        assert vars(getattr(FakeCudart, holder)).keys() <= set(dir(getattr(cudart, holder)))
