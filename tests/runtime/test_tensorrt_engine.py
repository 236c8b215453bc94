"""The engine over a device made of this machine's memory, against torch: pointers, profiles, shapes and rollback."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nvila_ros.errors import BackendError
from nvila_ros.export.graph import TRT_BASE, TRT_KV, GraphForm
from nvila_ros.export.parts import write_parts
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.spec import ModelSpec
from nvila_ros.runtime.tensorrt_builder import Limits, part_profiles
from nvila_ros.runtime.tensorrt_cuda import Cuda
from nvila_ros.runtime.tensorrt_engine import TensorRtEngine
from tests.export.random_models import make_spec, weights_of
from tests.export.test_forms import assert_close, needs_opset_24
from tests.runtime.fake_tensorrt import FakeCudart, fake_tensorrt

LIMITS = Limits(max_tiles=2, max_chunk=8, capacity=32)
PARTS = ("vision", "projector", "decoder")
TOLERANCE = 5e-3
forms = pytest.mark.parametrize(
    "form", [pytest.param(TRT_BASE, id="trt_base"), pytest.param(TRT_KV, id="trt_kv", marks=needs_opset_24)]
)


def load(folder: Path, form: GraphForm, head_size: int = 64) -> tuple[TensorRtEngine, Nvila, FakeCudart]:
    torch.manual_seed(0)
    spec: ModelSpec = make_spec("mlp_downsample_3x3_fix", True, 2, 2, 4, head_size)
    model = Nvila(spec).eval().requires_grad_(False)
    write_parts(spec, weights_of(model), folder, [TRT_BASE, form])
    plans = {part: str(folder / form.file_of(part)).encode() for part in PARTS}
    trt = fake_tensorrt({part: part_profiles(spec, part, form, LIMITS) for part in PARTS})
    cudart = FakeCudart()
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

    with pytest.raises(AssertionError, match="cache holds 32 tokens, 33 needed"):
        engine.forward(engine.embed(np.zeros(33, np.int64)), engine.new_cache(32))


def test_rows_that_would_lie_askew_are_refused(tmp_path: Path) -> None:
    engine, _, _ = load(tmp_path, TRT_BASE, head_size=16)
    cache = engine.new_cache(32)
    engine.forward(engine.embed(np.arange(3)), cache)

    with pytest.raises(AssertionError, match="new_k_0 must lie at a multiple of 256"):
        engine.forward(engine.embed(np.arange(1)), cache)


def test_plan_that_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    trt = fake_tensorrt({})

    with pytest.raises(BackendError, match=r"TensorRT 0.0 cannot load the plan of vision; build it on this device"):
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
    cudart.cudaMalloc = lambda num_bytes: (type("Status", (), {"name": "cudaErrorMemoryAllocation"}), None)

    with pytest.raises(BackendError, match="cudaMalloc failed: cudaErrorMemoryAllocation"):
        Cuda(cudart).allocate(1)


def test_cuda_is_asked_for_calls_that_it_has() -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    used = {name for name in vars(FakeCudart) if name.startswith("cuda")}

    assert {name for name in used if not hasattr(cudart, name)} == set()
    assert {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"} <= set(dir(cudart.cudaMemcpyKind))
