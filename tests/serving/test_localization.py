"""Answers of type `when`, by windows and by time tokens, against asking one thing after another."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from nvila_ros.generation.generator import embed_prompt
from nvila_ros.generation.intervals import restrict
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.prompt.chat import build_prompt
from nvila_ros.prompt.time_tokens import time_of_place
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.request import Request
from nvila_ros.runtime.torch_engine import TorchEngine
from nvila_ros.serving import localization
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.training.save import save_checkpoint
from nvila_ros.types import Answer, FinishReason, Frame, Query
from nvila_ros.visual.frame_encoder import SilentProgress
from tests.prompt.test_time_tokens import FIRST, NUM, write_tokenizer
from tests.runtime.test_engines import make_spec

STAMPS_NS = [round(s * 1e9) for s in (10, 10.5, 11, 14, 14.5, 15, 15.5, 16)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VisionLanguageModel:
    """A random model with time tokens."""
    root = tmp_path_factory.mktemp("timed")
    spec = make_spec("mlp_downsample", False, 2, 3)
    decoder = dataclasses.replace(spec.decoder, vocab_size=FIRST + NUM, max_positions=512)
    torch.manual_seed(3)
    files = write_tokenizer(root / "files")
    save_checkpoint(Nvila(dataclasses.replace(spec, decoder=decoder)), files, root / "ckpt")
    checkpoint = open_checkpoint(root / "ckpt")
    tokenizer = ChatTokenizer.from_folder(checkpoint.tokenizer_folder)
    return VisionLanguageModel(TorchEngine(checkpoint), tokenizer, backend="torch")


@pytest.fixture
def frames() -> list[Frame]:
    rng = np.random.default_rng(0)
    return [Frame(image=rng.integers(0, 255, (56, 56, 3), dtype=np.uint8), stamp_ns=stamp) for stamp in STAMPS_NS]


def ask(model: VisionLanguageModel, frames: list[Frame], event: str = "a box falls") -> tuple[Answer, dict]:
    answers: list[Answer] = []
    model.answer_all([Request(Query(query_id="q", question=event, answer_type="when"), answers.append)], frames)
    assert answers[0].finish_reason is FinishReason.STOP, answers[0].error
    return answers[0], json.loads(answers[0].text)


def test_time_tokens_are_read_as_one_sequence_after_another_tells(
    model: VisionLanguageModel, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localization, "LIKELY", 0.0)

    answer, told = ask(model, frames)

    assert told["method"] == "time_tokens"
    assert [frame.stamp_ns for frame in answer.frames] == STAMPS_NS
    engine, tokenizer = model._generator._engine, model._tokenizer
    seen = model._frame_encoder.encode_frames(frames, SilentProgress())
    question = 'When does "a box falls" happen in the video? Answer the question only using start and end timestamps.'
    ids_L = build_prompt(tokenizer, [*seen.parts, question])
    first = told["intervals"][0]
    best = 0.0
    for start, start_odds in enumerate(restrict(last_logits(engine, ids_L, seen.visual_GD), tokenizer.time_ids)):
        ids = [*ids_L, tokenizer.time_ids[start], *tokenizer.encode(" ")]
        ends = restrict(last_logits(engine, np.array(ids), seen.visual_GD), tokenizer.time_ids, start)
        if start_odds * ends.max() > best:
            best, place = start_odds * ends.max(), (start / (NUM - 1), int(ends.argmax()) / (NUM - 1))
    assert first["probability"] == pytest.approx(best, abs=1e-4)
    assert [first["start_ns"], first["end_ns"]] == [time_of_place(each, STAMPS_NS) for each in place]
    assert STAMPS_NS[0] <= first["start_ns"] <= first["end_ns"] <= STAMPS_NS[-1]


def last_logits(engine: TorchEngine, ids_L: np.ndarray, visual_GD: np.ndarray) -> np.ndarray:
    return engine.forward_all(embed_prompt(engine, ids_L, visual_GD))[-1]


def test_what_does_not_happen_has_no_intervals(
    model: VisionLanguageModel, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localization, "LIKELY", 1.1)

    answer, told = ask(model, frames)

    assert told["intervals"] == []
    assert answer.choices == ("yes", "no")
    assert answer.probabilities[0] == pytest.approx(told["happens"], abs=1e-5)
    assert sum(answer.probabilities) == pytest.approx(1)


def test_without_time_tokens_windows_are_asked_and_named_as_such(
    model: VisionLanguageModel, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    odds = iter([0.9, 0.1, 0.1, 0.8, 0.6, 0.2, 0.1, 0.1, 0.9])  # of the whole clip, then of each frame
    monkeypatch.setattr(localization, "_score", lambda *_: next(odds))
    monkeypatch.setattr(VisionLanguageModel, "has_time_tokens", False)

    _, told = ask(model, frames)

    assert told["method"] == "windows"
    assert [(each["start_s"], each["end_s"]) for each in told["intervals"]] == [(6.0, 6.0), (1.0, 4.5)]
    assert told["intervals"][1]["probability"] == pytest.approx(0.7)


@pytest.mark.parametrize("cameras", [(), ("left", "right")])
def test_clip_of_one_camera_is_needed(model: VisionLanguageModel, cameras: tuple[str, ...]) -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    frames = [Frame(image=image, stamp_ns=i, camera=camera) for i, camera in enumerate(cameras)]
    answers: list[Answer] = []

    model.answer_all([Request(Query(query_id="q", question="x", answer_type="when"), answers.append)], frames)

    assert answers[0].finish_reason is FinishReason.INVALID
    assert "frames of one camera" in answers[0].error


def test_it_ends_where_nobody_waits(model: VisionLanguageModel, frames: list[Frame]) -> None:
    answers: list[Answer] = []
    query = Query(query_id="q", question="x", answer_type="when")

    model.answer_all([Request(query, answers.append, should_stop=lambda: FinishReason.CANCELED)], frames)

    assert [answer.finish_reason for answer in answers] == [FinishReason.CANCELED]
    assert answers[0].query is query


def test_text_about_a_clip_may_hold_times_and_of_a_single_image_none(
    model: VisionLanguageModel, frames: list[Frame], monkeypatch: pytest.MonkeyPatch
) -> None:
    language_model = model._generator._engine.model.llm
    head, bias = language_model.head, torch.zeros(FIRST + NUM)
    bias[FIRST:] = 1e3
    monkeypatch.setattr(language_model, "head", lambda hidden: head(hidden) + bias)

    clip = model.answer(Query(query_id="a", question="what?", max_tokens=3), frames)
    image = model.answer(Query(query_id="b", question="what?", max_tokens=3), frames[:1])

    assert clip.text.count("<") == 3
    assert "<" not in image.text
