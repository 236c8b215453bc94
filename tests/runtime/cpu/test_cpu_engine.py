"""The CPU engine against torch eager: float models to rounding, quantized ones to what their weights stand for."""

import functools
import itertools
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip(
    "openvino", reason="openvino is not installed; pip install nvila_ros[openvino]", exc_type=ImportError
)

from nvila_ros.generation.decode import decode_greedy
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight
from nvila_ros.models.shapes import EMBEDDING
from nvila_ros.models.spec import ModelSpec
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.contract import Engine
from nvila_ros.runtime.cpu import engine as cpu_engine
from nvila_ros.runtime.cpu import native_decoder
from nvila_ros.runtime.cpu.engine import HEAD, CpuEngine, load, load_quantized
from nvila_ros.runtime.onnxruntime.steps import BLOCK_ROWS
from nvila_ros.runtime.openvino import models as openvino_models
from nvila_ros.runtime.openvino.api import ov
from nvila_ros.runtime.rounded import round_int8
from nvila_ros.runtime.torch_engine import TorchEngine
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.types import Query
from tests.golden_cases import CASES, GOLDEN, assert_near, load_case, load_told
from tests.runtime.test_engines import (
    assert_appends_without_logits,
    assert_copied_prefix_goes_on,
    assert_same_at_every_stage,
    assert_tree_matches_runs,
    make_checkpoint,
    make_spec,
)

pytestmark = pytest.mark.slow  # quantizes a model many times

ATOL = 1e-4
STOP = 286
WAIT_S = 60.0
ROOT = Path(__file__).parents[3]
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


FEW, MANY = 1000, 1  # from how many tokens on OpenVINO decodes, so that one of the runtimes takes every call


def round_to_int4(weight_NK: np.ndarray, group: int) -> Int4Weight:
    grouped = weight_NK.T.reshape(-1, group, len(weight_NK))
    scale_GN = np.abs(grouped).max(1) / 7
    values_KN = np.clip(np.rint(grouped / scale_GN[:, None]), -8, 7).astype(np.int8)
    return Int4Weight(values_KN.reshape(-1, len(weight_NK)), scale_GN.astype(np.float32))


def quantize(weights: dict[str, np.ndarray], group: int, input_scale: float | None) -> dict[str, Weight]:
    quantized: dict[str, Weight] = dict(weights)
    for key, weight in weights.items():
        if key.endswith("proj.weight") and key.startswith("llm."):
            quantized[key] = round_to_int4(weight, group)
        elif ".layers." in key and weight.ndim == 2 and key.startswith("vision_tower."):
            rounded = round_int8(weight)
            quantized[key] = Int8Weight(np.ascontiguousarray(rounded.values_KN), rounded.scale_N, input_scale)
    return quantized


def stand_for(weights: dict[str, Weight]) -> dict[str, np.ndarray]:
    """Return what quantized weights stand for, in the checkpoint's own layout."""
    return {k: w if isinstance(w, np.ndarray) else np.ascontiguousarray(w.dequantize().T) for k, w in weights.items()}


class FakeCheckpoint:
    """Weights that were never written."""

    def __init__(self, spec: ModelSpec, weights: dict[str, np.ndarray]) -> None:
        self.spec, self._weights = spec, weights

    def weights(self) -> dict[str, np.ndarray]:
        return self._weights


@settings(max_examples=6, deadline=None)
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
def test_float_model_matches_torch_at_every_stage(
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
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("ckpt"), spec, seed)
    assert_same_at_every_stage(load(checkpoint, threads=1), TorchEngine(checkpoint), lengths, seed)


@functools.cache
def exact() -> tuple[CpuEngine, TorchEngine]:
    """Return a quantized engine that rounds no activation, since no matrix has groups that its runtimes know."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(openvino_models, "attention_type", lambda weight: ov.Type.f32)
        spec = make_spec("mlp_downsample", True, 2, 3)
        weights = quantize(make_checkpoint(Path(folder), spec, 7).load(), 8, None)
        weights[HEAD] = round_to_int4(weights[EMBEDDING], 8)
        return load_quantized(spec, weights, threads=1), stand_in(spec, weights)


@pytest.fixture(params=[FEW, MANY, 4], ids=["onnxruntime", "openvino", "both"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> CpuEngine:
    """The exact engine, each of whose calls is decoded by one runtime, or by both in turns."""
    monkeypatch.setattr(cpu_engine, "MANY_TOKENS", request.param)
    return exact()[0]


same_engine = settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@same_engine
@given(calls=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_calls_and_cuts_of_any_length_give_what_torch_gives(
    engine: CpuEngine, calls: list[tuple[int, int]], seed: int
) -> None:
    want, rng = exact()[1], np.random.default_rng(seed)
    cache, want_cache = engine.new_cache(64), want.new_cache(64)
    for num_new, num_cut in calls:
        embeds_LD = want.embed(rng.integers(0, 289, num_new))
        logits_V = want.forward(embeds_LD, want_cache)
        assert_near("logits", engine.forward(embeds_LD, cache), logits_V, ATOL)
        for each in (cache, want_cache):
            each.truncate(max(each.length - num_cut, 0))


@same_engine
@given(prefix=st.integers(1, 20), lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_branches_of_a_tree_get_what_each_gets_alone(
    engine: CpuEngine, prefix: int, lengths: list[int], seed: int
) -> None:
    assert_tree_matches_runs(engine, engine, prefix, lengths, seed, ATOL)


def test_copied_prefix_goes_on_as_its_source(engine: CpuEngine) -> None:
    assert_copied_prefix_goes_on(engine)


def test_tree_of_which_nothing_is_wanted_is_appended(engine: CpuEngine) -> None:
    assert_appends_without_logits(engine)


def test_steps_go_on_from_block_to_block(engine: CpuEngine) -> None:
    want = exact()[1]
    num_steps = want.spec.decoder.max_positions
    assert num_steps > BLOCK_ROWS
    cache, want_cache = engine.new_cache(num_steps), want.new_cache(num_steps)
    for embeds_LD in np.split(want.embed(np.random.default_rng(4).integers(0, 289, num_steps)), num_steps):
        logits_V = want.forward(embeds_LD, want_cache)
        assert_near("logits", engine.forward(embeds_LD, cache), logits_V, ATOL)


def test_two_caches_do_not_disturb_each_other(engine: CpuEngine) -> None:
    rng = np.random.default_rng(3)
    prompts = [engine.embed(rng.integers(0, 289, 20)) for _ in range(2)]
    alone = []
    for prompt in prompts:
        cache = engine.new_cache(20)
        alone.append([engine.forward(part, cache) for part in np.split(prompt, 4)])

    caches = [engine.new_cache(20) for _ in prompts]
    for i in range(4):
        for prompt, cache, want in zip(prompts, caches, alone, strict=True):
            assert np.array_equal(engine.forward(np.split(prompt, 4)[i], cache), want[i])


def test_threads_sleep_once_a_call_has_ended(tmp_path: Path) -> None:
    spec = make_spec("mlp_downsample", True, 2, 8)
    spec = replace(spec, decoder=replace(spec.decoder, mlp_width=4096))
    weights = quantize(make_checkpoint(tmp_path, spec, 7).load(), 128, None)
    engine = load_quantized(spec, weights, threads=2)
    cache = engine.new_cache(64)

    for num_new in (1, 20, 1):
        engine.forward(engine.embed(np.arange(num_new)), cache)

        end_s = time.monotonic() + WAIT_S
        while not all(_sleeps() for _ in range(20)):  # one that spins is not seen asleep twenty times in a row
            assert time.monotonic() < end_s, "a thread goes on although nothing is computed"


def _sleeps() -> bool:
    """Whether every thread of this process but the calling one waits for something."""
    own = threading.get_native_id()
    stats = [Path(task, "stat").read_text() for task in Path("/proc/self/task").iterdir() if int(task.name) != own]
    time.sleep(0.001)
    return all(stat.rpartition(")")[2].split()[0] == "S" for stat in stats)


def test_arrays_that_may_not_be_written_are_read(engine: CpuEngine) -> None:
    tile_NCHW = np.zeros((1, 3, 56, 56), np.float32)
    arrays = (tile_NCHW, engine.vision(tile_NCHW), engine.embed(np.arange(5)))
    for array in arrays:
        array.flags.writeable = False

    assert np.array_equal(engine.vision(arrays[0]), arrays[1])
    assert len(engine.project(arrays[1])) == 1
    assert len(engine.forward(arrays[2], engine.new_cache(5))) == 289


def test_results_outlive_the_next_call_and_the_cache(engine: CpuEngine) -> None:
    first_V = engine.forward(engine.embed(np.array([1, 2, 3, 4])), engine.new_cache(4))
    feat_NPE = engine.vision(np.zeros((1, 3, 56, 56), np.float32))
    kept = [array.copy() for array in (first_V, feat_NPE)]

    engine.forward(engine.embed(np.arange(8)), engine.new_cache(8))
    engine.vision(np.ones((1, 3, 56, 56), np.float32))

    assert all(np.array_equal(*pair) for pair in zip(kept, (first_V, feat_NPE), strict=True))


@functools.cache
def load_golden(name: str) -> VisionLanguageModel:
    checkpoint = open_checkpoint(GOLDEN / name / "ckpt")
    tokenizer = ChatTokenizer.from_folder(checkpoint.tokenizer_folder)
    return VisionLanguageModel(load(checkpoint, threads=1), tokenizer, backend="cpu")


@pytest.mark.parametrize("name", CASES)
def test_answer_is_the_references_greedy_text(name: str) -> None:
    frames, question, _ = load_case(name)

    answer = load_golden(name.split("/")[0]).answer(Query(query_id="q", question=question, max_tokens=8), frames)

    assert answer.text == load_told(name)["greedy_text"]


def test_nvila_tiny_decodes_the_references_greedy_ids() -> None:
    checkpoint = open_checkpoint(ROOT / "checkpoints" / "nvila-tiny")
    rng = np.random.default_rng(5)
    px, ids_L = checkpoint.spec.vision.image_px, rng.integers(0, checkpoint.spec.decoder.vocab_size, 12)
    tile_NCHW = rng.uniform(-1, 1, (1, 3, px, px)).astype(np.float32)

    def decode(engine: Engine) -> list[int]:
        visual_GD = engine.project(engine.vision(tile_NCHW))[0]
        cache = engine.new_cache(len(visual_GD) + 40)
        logits_V = engine.forward(np.concatenate([visual_GD, engine.embed(ids_L)]), cache)
        tokens = decode_greedy(engine, logits_V, cache, stop_ids=(), never=np.array([], np.int64))
        return list(itertools.islice(tokens, 20))

    assert decode(load(checkpoint, threads=1)) == decode(TorchEngine(checkpoint))


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("decoder", ["native", "onnxruntime", "openvino"])
@pytest.mark.parametrize("is_head_float", [True, False])
def test_activations_in_eight_bits_stay_near(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kv_heads: int, decoder: str, is_head_float: bool
) -> None:
    # A rounded activation is off by at most 1/254 of the largest in its group: over a sum of hundreds of terms with
    # errors of either sign that is some thousandths of a logit's spread, and a wrong group or scale would be tenths.
    if decoder != "native":
        monkeypatch.setattr(native_decoder, "libraries", tuple)
        monkeypatch.setattr(cpu_engine, "MANY_TOKENS", FEW if decoder == "onnxruntime" else MANY)
    elif not native_decoder.libraries():
        pytest.skip("this processor has no kernels of ours")
    spec = make_spec("mlp_downsample", is_head_float, kv_heads, 8)
    spec = replace(spec, decoder=replace(spec.decoder, mlp_width=512))
    weights = quantize(make_checkpoint(tmp_path, spec, 7).load(), 128, None)
    if not is_head_float:
        weights[HEAD] = round_to_int4(np.asarray(weights[HEAD]), 128)
    want, got = stand_in(spec, weights), load_quantized(spec, weights, threads=1)
    rng = np.random.default_rng(11)
    got_cache, want_cache = got.new_cache(64), want.new_cache(64)

    for length in (9, 1, 1, 5):
        embeds_LD = want.embed(rng.integers(0, spec.decoder.vocab_size, length))
        logits_V = want.forward(embeds_LD, want_cache)
        assert_near("logits", got.forward(embeds_LD, got_cache), logits_V, 0.03 * logits_V.std())
    assert got.precision == "w8a8+w4a8"


def stand_in(spec: ModelSpec, weights: dict[str, Weight]) -> TorchEngine:
    """Return torch on what quantized weights stand for, a float head in eight bits by row."""
    plain = stand_for(weights)
    head = weights.get(HEAD, weights[EMBEDDING])
    rounded = round_int8(head) if isinstance(head, np.ndarray) else head
    untied = replace(spec, decoder=replace(spec.decoder, is_tied=False))
    return TorchEngine(FakeCheckpoint(untied, plain | {HEAD: np.ascontiguousarray(rounded.dequantize().T)}))


@pytest.mark.parametrize("input_scale", [None, 0.05])
def test_int8_tower_stays_near_what_its_weights_stand_for(tmp_path: Path, input_scale: float | None) -> None:
    # With a scale of 0.05 every activation within +-6.4 is off by at most 0.025; features have a spread of about one.
    spec = make_spec("mlp_downsample", True, 2, 1)
    weights = quantize(make_checkpoint(tmp_path, spec, 7).load(), 8, input_scale)
    want, got = TorchEngine(FakeCheckpoint(spec, stand_for(weights))), load_quantized(spec, weights, threads=1)
    tile_NCHW = np.random.default_rng(2).uniform(-1, 1, (2, 3, 56, 56)).astype(np.float32)

    feat_NPE = want.vision(tile_NCHW)

    assert_near("features", got.vision(tile_NCHW), feat_NPE, (0.03 if input_scale is None else 0.06) * feat_NPE.std())


def test_weights_without_integers_are_computed_in_float(tmp_path: Path) -> None:
    spec = make_spec("mlp_downsample", True, 2, 1)
    checkpoint = make_checkpoint(tmp_path, spec, 7)
    got, want = load_quantized(spec, checkpoint.load(), threads=1), load(checkpoint, threads=1)
    embeds_LD = want.embed(np.arange(7))

    assert got.precision == "fp32"
    assert np.array_equal(got.forward(embeds_LD, got.new_cache(7)), want.forward(embeds_LD, want.new_cache(7)))


def test_nothing_is_reported_by_importing_it(tmp_path: Path) -> None:
    (tmp_path / "openvino_telemetry.py").write_text("print('reported')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import nvila_ros.runtime.cpu.engine"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRON)

    assert done.stdout == ""
