"""What an engine over plans must do, whatever runs them: a GPU here, or the stand-in of tests/runtime."""

import time
from dataclasses import replace
from statistics import median

import numpy as np

from nvila_ros.runtime.contract import Engine
from nvila_ros.runtime.tensorrt.engine import TensorRtEngine
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.types import Frame, Query
from nvila_ros.world.questions import EVAL_KINDS, eval_case
from nvila_ros.world.rendering import render
from tests.export.test_forms import assert_close
from tests.runtime.test_engines import assert_tree_matches_runs

TOLERANCE = {"fp16": 1e-2, "w8a8+w4a16": 1e-1}
"""Of the error against the values, root mean square, by precision. Inputs that lie between two steps of eight bits
round either way, and each moves what follows."""
NUM_QUESTIONS = 24
EQUAL_ANSWERS = {"fp16": 24, "w8a8+w4a16": 22}
"""Least number of answers that are torch's to the letter."""


def check_parts(engine: TensorRtEngine, reference: Engine) -> None:
    """Hold every part against torch over the same inputs, and a sequence in chunks, steps and after a cut."""
    spec, tolerance = engine.spec, TOLERANCE[engine.precision]
    rng = np.random.default_rng(0)
    tile_NCHW = rng.uniform(-1, 1, (3, 3, spec.vision.image_px, spec.vision.image_px)).astype(np.float32)
    feat_NPE = reference.vision(tile_NCHW)
    assert_close("features", engine.vision(tile_NCHW), feat_NPE, tolerance)
    assert_close("visual tokens", engine.project(feat_NPE), reference.project(feat_NPE), tolerance)
    ids_L = rng.integers(0, spec.decoder.vocab_size, 90)
    assert np.allclose(engine.embed(ids_L), reference.embed(ids_L), atol=1e-3)
    got_cache, want_cache = engine.new_cache(100), reference.new_cache(100)
    for start, end in ((0, 80), (80, 81), (81, 82), (82, 88), (88, 90)):
        embeds_LD = reference.embed(ids_L[start:end])
        got, want = (each.forward(embeds_LD, held) for each, held in ((engine, got_cache), (reference, want_cache)))
        assert_close(f"logits after {end}", got, want, tolerance)
    for each in (got_cache, want_cache):
        each.truncate(40)
    embeds_LD = reference.embed(ids_L[40:41])
    got, want = (each.forward(embeds_LD, held) for each, held in ((engine, got_cache), (reference, want_cache)))
    assert_close("logits after a cut", got, want, tolerance)


def check_branches(engine: TensorRtEngine) -> None:
    """Hold branches of one prefix, more than a chunk gives logits of, against each branch alone."""
    assert_tree_matches_runs(engine, engine, 12, [2, 1, 3, 1, 2, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1], 0, atol=0.5)


def check_copied_prefix(engine: TensorRtEngine) -> None:
    """Hold a cache that took another's prefix against one that was filled anew."""
    ids_L = np.random.default_rng(3).integers(0, engine.spec.decoder.vocab_size, 20)
    source, copied, fresh = (engine.new_cache(capacity) for capacity in (24, 40, 24))
    engine.forward(engine.embed(ids_L), source)

    copied.copy_prefix(source, 11)
    got = engine.forward(engine.embed(ids_L[:4]), copied)

    engine.forward(engine.embed(ids_L[:11]), fresh)
    assert_close("logits", got, engine.forward(engine.embed(ids_L[:4]), fresh), TOLERANCE["fp16"])


def check_best(engine: TensorRtEngine) -> None:
    """Hold the best logits that a plan sorts against all of them."""
    cache = engine.new_cache(16)
    for ids_L in (np.arange(9), np.array([3])):
        ids, logits = engine.forward_top(engine.embed(ids_L), cache)
        logits_V = engine.fetch_logits()
        assert np.array_equal(logits, np.sort(logits_V)[::-1][: len(logits)])
        assert np.array_equal(logits_V[ids], logits)


def check_graphs(engine: TensorRtEngine) -> None:
    """Hold steps that are launched as a graph against the same that are not, bit by bit."""
    told = {}
    for use_graphs in (False, True):
        engine.use_graphs = use_graphs
        cache = engine.new_cache(64)
        engine.forward(engine.embed(np.arange(20)), cache)
        told[use_graphs] = [engine.forward(engine.embed(np.array([7 * i % 100])), cache) for i in range(12)]
        assert (cache.captured is not None) == use_graphs
    assert engine.use_graphs, "the graph was given up"
    for i, (plain, launched) in enumerate(zip(told[False], told[True], strict=True)):
        assert np.array_equal(plain, launched), f"step {i} differs by {np.abs(plain - launched).max():.2e}"


def step_ms(engine: TensorRtEngine, use_graphs: bool, num_steps: int) -> float:
    """Return the median time of a step of one token, its best logits included."""
    engine.use_graphs = use_graphs
    cache, embeds_LD, times = engine.new_cache(40 + num_steps), engine.embed(np.array([5])), []
    engine.forward(engine.embed(np.arange(32)), cache)
    for _ in range(num_steps):
        started = time.perf_counter()
        engine.forward_top(embeds_LD, cache)
        times.append(time.perf_counter() - started)
    return 1e3 * median(times[3:])


def check_answers(got: VisionLanguageModel, want: VisionLanguageModel, least: int) -> None:
    """Hold whole answers against torch's: at least so many of `NUM_QUESTIONS` must be equal to the letter."""
    differing = []
    for i in range(NUM_QUESTIONS):
        kind = EVAL_KINDS[i % len(EVAL_KINDS)]
        case = eval_case(kind, 20_000 + i)
        frames = [Frame(image=render(case.scene, t_s, 640, 480), stamp_ns=round(t_s * 1e9)) for t_s in case.times_s]
        query = replace(Query(query_id=kind, question=case.question.text, max_tokens=16), num_frames=len(frames))
        texts = [each.answer(query, frames).text for each in (got, want)]
        if texts[0] != texts[1]:
            differing.append((case.question.text, *texts))
    assert NUM_QUESTIONS - len(differing) >= least, differing
