"""OpenVINO against torch eager: float models to rounding, quantized ones to what their weights stand for."""

import functools
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip(
    "openvino", reason="openvino is not installed; pip install nvila_ros[openvino]", exc_type=ImportError
)

from nvila_ros.generation.decode import decode_greedy, log_softmax, prefill, score_choices
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight, pack_nibbles
from nvila_ros.models.spec import ModelSpec
from nvila_ros.pipeline import Perceiver
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime import openvino_engine
from nvila_ros.runtime.contract import Engine
from nvila_ros.runtime.openvino_api import ov
from nvila_ros.runtime.openvino_engine import EMBEDDING, HEAD, OpenvinoEngine, load, load_quantized
from nvila_ros.runtime.openvino_weights import quantize_rows
from nvila_ros.runtime.torch_engine import TorchEngine
from nvila_ros.types import Query
from tests.golden_cases import CASES, CHECKPOINT, GOLDEN, assert_near, load_case, load_told
from tests.runtime.test_engines import assert_same_at_every_stage, make_checkpoint, make_spec

ATOL = 1e-4
STOP = 286
ROOT = Path(__file__).parents[2]
ENVIRON = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


@pytest.fixture(scope="module")
def engine() -> OpenvinoEngine:
    return load(open_checkpoint(CHECKPOINT), threads=1)


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
            rounded = quantize_rows(weight)
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
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_openvino_matches_torch_at_every_stage(
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
    assert_same_at_every_stage(load(checkpoint, threads=1), TorchEngine(checkpoint), lengths, seed)


@settings(max_examples=10, deadline=None)
@given(
    prefix=st.integers(1, 30),
    cuts=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=4),
    sweep_rows=st.sampled_from([0, 8, 1000]),
)
def test_prefix_cut_back_to_gives_what_a_fresh_one_gives(
    engine: OpenvinoEngine, prefix: int, cuts: list[tuple[int, int]], sweep_rows: int
) -> None:
    rng = np.random.default_rng(prefix)
    kept = engine.embed(rng.integers(0, 289, prefix))
    cache = engine.new_cache(400)
    engine.forward(kept, cache)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_engine, "MIN_SWEEP_ROWS", sweep_rows)
        for num_new, num_cut in cuts:
            new = engine.embed(rng.integers(0, 289, num_new))
            logits_V = engine.forward(new, cache)
            kept = np.concatenate([kept, new])
            assert_near("logits", logits_V, engine.forward(kept, engine.new_cache(400)), ATOL)
            kept = kept[: max(len(kept) - num_cut, 0)]
            cache.truncate(len(kept))


def test_rows_swept_out_of_a_quantized_cache_are_the_hidden_ones(tmp_path: Path) -> None:
    spec = make_spec("mlp_downsample", True, 2, 3)
    engine = load_quantized(spec, quantize(make_checkpoint(tmp_path, spec, 7).load(), 8, None), threads=1)
    rng = np.random.default_rng(4)
    kept, cut, last = (engine.embed(rng.integers(0, 289, n)) for n in (20, 60, 3))
    cache, fresh = engine.new_cache(100), engine.new_cache(100)

    engine.forward(kept, cache)
    engine.forward(cut, cache)
    cache.truncate(20)
    got = engine.forward(last, cache)

    engine.forward(kept, fresh)
    assert_near("logits", got, engine.forward(last, fresh), 1e-5)


def test_two_caches_do_not_disturb_each_other(engine: OpenvinoEngine) -> None:
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


def test_logits_outlive_the_next_call(engine: OpenvinoEngine) -> None:
    cache = engine.new_cache(8)
    first_V = engine.forward(engine.embed(np.array([1, 2])), cache)
    copy_V = first_V.copy()

    engine.forward(engine.embed(np.array([3])), cache)

    assert np.array_equal(first_V, copy_V)


def test_prefill_in_chunks_gives_what_one_call_gives(engine: OpenvinoEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    embeds_LD = engine.embed(np.random.default_rng(0).integers(0, 289, 40))
    whole = engine.forward(embeds_LD, engine.new_cache(40))

    monkeypatch.setattr("nvila_ros.generation.decode.PREFILL_CHUNK", 7)
    chunked = prefill(engine, embeds_LD, engine.new_cache(40), lambda: None)

    assert_near("logits", chunked, whole, ATOL)


def test_choice_scores_are_the_probabilities_of_whole_answers(engine: OpenvinoEngine) -> None:
    prompt = np.random.default_rng(1).integers(0, 289, 20)
    choices = [[5, 6, STOP], [5, STOP], [7, 8, 9, STOP]]
    cache = engine.new_cache(64)
    logits_V = engine.forward(engine.embed(prompt), cache)

    got = score_choices(engine, logits_V, cache, choices, lambda: None)

    naive = []
    for choice in choices:
        score = 0.0
        for k, token in enumerate(choice):
            ids = np.concatenate([prompt, np.array(choice[:k], np.int64)])
            score += log_softmax(engine.forward(engine.embed(ids), engine.new_cache(64)))[token]
        naive.append(np.exp(score))
    assert np.allclose(got, np.array(naive) / sum(naive), rtol=1e-3)
    assert cache.length == len(prompt)


@functools.cache
def load_golden(name: str) -> Perceiver:
    checkpoint = open_checkpoint(GOLDEN / name / "ckpt")
    tokenizer = ChatTokenizer.from_folder(checkpoint.tokenizer_folder)
    return Perceiver(load(checkpoint, threads=1), tokenizer, backend="openvino")


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
        tokens = decode_greedy(engine, logits_V, cache, stop_id=None, never=np.array([], np.int64))
        return list(itertools.islice(tokens, 20))

    assert decode(load(checkpoint, threads=1)) == decode(TorchEngine(checkpoint))


def test_int4_values_are_packed_low_half_first() -> None:
    assert pack_nibbles(np.array([[1, -1], [-8, 7]], np.int8)).tolist() == [[0xF1], [0x78]]


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("is_tied", [True, False])
def test_int4_decoder_computes_what_its_weights_stand_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kv_heads: int, is_tied: bool
) -> None:
    # With attention in float too: no matrix has whole groups of 128 inputs here, so no activation is rounded.
    monkeypatch.setattr(openvino_engine, "_attention_type", lambda weight: ov.Type.f32)
    spec = make_spec("mlp_downsample", is_tied, kv_heads, 3)
    weights = quantize(make_checkpoint(tmp_path, spec, 7).load(), 8, None)

    assert_decodes_alike(spec, weights, ATOL)


def test_activations_in_eight_bits_stay_near(tmp_path: Path) -> None:
    # A rounded activation is off by at most 1/254 of the largest in its group: over a sum of hundreds of terms with
    # errors of either sign that is some thousandths of a logit's spread, and a wrong group or scale would be tenths.
    spec = make_spec("mlp_downsample", True, 2, 8)
    spec = replace(spec, decoder=replace(spec.decoder, mlp_width=512))
    weights = quantize(make_checkpoint(tmp_path, spec, 7).load(), 128, None)

    assert_decodes_alike(spec, weights, 0.03)


def assert_decodes_alike(spec: ModelSpec, weights: dict[str, Weight], atol_of_spread: float) -> None:
    """Hold prefill and decode steps to the same weights in float; the tolerance is a share of the logits' spread."""
    plain = stand_for(weights)
    head = plain.get(HEAD, plain[EMBEDDING])
    rounded = np.ascontiguousarray(quantize_rows(head).dequantize().T)
    untied = replace(spec, decoder=replace(spec.decoder, is_tied=False))
    want = TorchEngine(FakeCheckpoint(untied, plain | {HEAD: rounded}))
    got = load_quantized(spec, weights, threads=1)
    rng = np.random.default_rng(11)
    got_cache, want_cache = got.new_cache(64), want.new_cache(64)
    for length in (9, 1, 1, 5):
        embeds_LD = want.embed(rng.integers(0, spec.decoder.vocab_size, length))
        logits_V = want.forward(embeds_LD, want_cache)
        assert_near("logits", got.forward(embeds_LD, got_cache), logits_V, atol_of_spread * logits_V.std())
    assert got.precision == "w8a8+w4a8"


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
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import nvila_ros.runtime.openvino_engine"

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRON)

    assert told.stdout == ""
