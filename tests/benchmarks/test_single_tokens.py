"""The comparison with single tokens left out is fair: nothing left out is the clip itself, and positions have gaps."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.changing.single_tokens import SingleTokenEncoder, SpacedEngine
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.onnxruntime.engine import load
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.types import Answer, Frame, Query
from nvila_ros.visual.changes import ChangeRule
from tests.golden_cases import GOLDEN

FOLDER = GOLDEN / "lite" / "ckpt"
FRAMES = [
    Frame(image=np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8), stamp_ns=number)
    for number in range(4)
]


def ask(model: VisionLanguageModel) -> Answer:
    return model.answer(Query(query_id="q", question="What is it?", max_tokens=6), FRAMES)


@pytest.fixture(scope="module")
def plain() -> VisionLanguageModel:
    tokenizer = ChatTokenizer.from_folder(FOLDER / "llm")
    return VisionLanguageModel(load(open_checkpoint(FOLDER), threads=1), tokenizer, backend="onnxruntime")


def spaced(plain: VisionLanguageModel, rule: ChangeRule, is_spaced: bool) -> tuple[VisionLanguageModel, SpacedEngine]:
    engine, tokenizer = SpacedEngine(plain._generator._engine), plain._tokenizer
    model = VisionLanguageModel(engine, tokenizer, backend="onnxruntime")
    model._frame_encoder = SingleTokenEncoder(engine, tokenizer, 0, rule, is_spaced=is_spaced)
    return model, engine


@pytest.mark.parametrize("is_spaced", [False, True])
def test_nothing_left_out_answers_as_the_clip(plain: VisionLanguageModel, is_spaced: bool) -> None:
    want = ask(plain)
    model, _ = spaced(plain, ChangeRule(1e-9, 4), is_spaced)

    got = ask(model)

    assert (got.text, got.counts.num_prompt_tokens) == (want.text, want.counts.num_prompt_tokens)


def test_what_is_left_out_leaves_gaps_between_positions(plain: VisionLanguageModel) -> None:
    want = ask(plain).counts
    model, engine = spaced(plain, ChangeRule(2.0, 2), is_spaced=True)  # the first of two frames alone has tokens

    got = ask(model).counts

    gaps = np.diff(engine.positions_L) - 1
    assert got.num_visual_tokens * 2 == want.num_visual_tokens
    assert gaps.sum() == want.num_visual_tokens - got.num_visual_tokens
    assert np.count_nonzero(gaps) == 2
