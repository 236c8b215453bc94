"""Answers are as likely as the model says token by token, however many are scored at once."""

from __future__ import annotations

import numpy as np
import pytest

from nvila_ros.errors import QueryError
from nvila_ros.generation.decode import log_total
from nvila_ros.generation.generator import embed_prompt
from nvila_ros.prompt.chat import build_prompt
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.contract import Engine
from nvila_ros.runtime.loading import find_checkpoint, load_engine, open_model
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.tools.likelihood import LikelihoodScorer
from nvila_ros.types import Frame, Query
from nvila_ros.visual.frame_encoder import FrameEncoder, SilentProgress
from nvila_ros.world.questions import eval_case
from nvila_ros.world.rendering import render

TEXTS = ["blue", "orange", "left", "Orange.", "there is no such thing", "7"]


@pytest.fixture(scope="module")
def loaded() -> tuple[Engine, ChatTokenizer]:
    source = open_model(find_checkpoint("nvila-tiny"))
    return load_engine(source, "onnxruntime"), ChatTokenizer.from_folder(source.tokenizer_folder)


def film(kind: str, index: int = 0) -> tuple[list[Frame], str]:
    case = eval_case(kind, index)
    frames = [Frame(image=render(case.scene, t, 320, 240), stamp_ns=round(t * 1e9)) for t in case.times_s]
    return frames, case.question.text


@pytest.mark.parametrize("kind", ["color", "motion"])
def test_scores_are_those_of_one_token_after_another(loaded: tuple[Engine, ChatTokenizer], kind: str) -> None:
    engine, tokenizer = loaded
    frames, question = film(kind)
    seen = FrameEncoder(engine, 0, 0.0).encode_frames(frames, SilentProgress())
    ids_L = build_prompt(tokenizer, [*seen.parts, question])

    for text, told in zip(TEXTS, LikelihoodScorer(engine, tokenizer).score(frames, question, TEXTS), strict=True):
        ids = [*tokenizer.encode(text), tokenizer.answer_end]
        cache = engine.new_cache(len(ids_L) + len(ids))
        logits_V = engine.forward(embed_prompt(engine, ids_L, seen.visual_GD), cache)
        expected, is_greedy = [], True
        for token in ids:
            expected.append(logits_V[token] - log_total(logits_V))
            is_greedy &= int(logits_V.argmax()) == token
            logits_V = engine.forward(engine.embed(np.array([token])), cache)
        assert told.log_probs == pytest.approx(expected, abs=1e-4)
        assert told.is_greedy == is_greedy


def test_scores_normalised_are_the_probabilities_of_choices(loaded: tuple[Engine, ChatTokenizer]) -> None:
    engine, tokenizer = loaded
    frames, question = film("color")
    vlm = VisionLanguageModel(engine, tokenizer, backend="onnxruntime")

    told = [sum(each.log_probs) for each in LikelihoodScorer(engine, tokenizer).score(frames, question, TEXTS)]
    answer = vlm.answer(Query(query_id="q", question=question, choices=tuple(TEXTS)), frames)

    weights = np.exp(np.array(told) - max(told))
    assert np.allclose(weights / weights.sum(), answer.probabilities, atol=1e-5)


def test_greedy_answer_is_the_one_that_decoding_tells(loaded: tuple[Engine, ChatTokenizer]) -> None:
    engine, tokenizer = loaded
    frames, question = film("motion", 3)
    said = (
        VisionLanguageModel(engine, tokenizer, backend="onnxruntime")
        .answer(Query(query_id="q", question=question), frames)
        .text
    )

    told = LikelihoodScorer(engine, tokenizer).score(frames, question, [said, f"{said} {said}", "zebra"])

    assert [each.is_greedy for each in told] == [True, False, False]


def test_scores_are_the_same_alone_among_others_and_asked_again(loaded: tuple[Engine, ChatTokenizer]) -> None:
    engine, tokenizer = loaded
    frames, question = film("color")
    scorer = LikelihoodScorer(engine, tokenizer)
    many = TEXTS * 40  # more than fit the model's positions at once

    together = [each.log_probs for each in scorer.score(frames, question, many)]
    alone = [scorer.score(frames, question, [text])[0].log_probs for text in TEXTS]

    for number, log_probs in enumerate(together):
        assert log_probs == pytest.approx(alone[number % len(TEXTS)], abs=1e-4)


@pytest.mark.parametrize("text", ["", "word " * 3000])
def test_answer_that_has_no_place_is_refused(loaded: tuple[Engine, ChatTokenizer], text: str) -> None:
    frames, question = film("color")

    with pytest.raises(QueryError, match=r"an answer must have 1 to \d+ tokens behind this prompt"):
        LikelihoodScorer(*loaded).score(frames, question, ["blue", text])
