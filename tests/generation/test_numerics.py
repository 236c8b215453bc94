"""A result that is no number is never an answer: the query fails by name, and nothing of it is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nvila_ros.errors import NumericsError
from nvila_ros.generation.branches import score_token
from nvila_ros.generation.decode import check_finite, most_likely, score_sequences
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.request import Request
from nvila_ros.runtime.onnxruntime.engine import load
from nvila_ros.serving.pipeline import VisionLanguageModel
from nvila_ros.types import Answer, FinishReason, Frame, Query
from tests.golden_cases import CHECKPOINT

FRAME = Frame(image=np.zeros((8, 8, 3), np.uint8), stamp_ns=1)
BAD = (np.nan, np.inf, -np.inf)


class Poisoned:
    """An engine whose logits hold a value that is no number from a given call on, once."""

    def __init__(self, engine: Any, bad: float, call: int) -> None:
        self._engine, self._bad, self._num_left = engine, bad, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def forward(self, *args: Any) -> np.ndarray:
        return self._poison(self._engine.forward(*args))

    def forward_tree(self, *args: Any) -> np.ndarray:
        return self._poison(self._engine.forward_tree(*args))

    def _poison(self, logits: np.ndarray) -> np.ndarray:
        self._num_left -= 1
        if self._num_left == 0:
            logits = logits.copy()
            logits[..., 3] = self._bad
        return logits


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize(
    ("fields", "call"), [({}, 1), ({}, 2), ({"answer_type": "yes_no"}, 2), ({"choices": ("a", "b c")}, 2)]
)
def test_logit_that_is_no_number_fails_the_query_and_the_next_is_answered(
    bad: float, fields: dict[str, Any], call: int
) -> None:
    engine = load(open_checkpoint(CHECKPOINT), threads=1)
    tokenizer = ChatTokenizer.from_folder(CHECKPOINT / "llm")
    vlm = VisionLanguageModel(Poisoned(engine, bad, call), tokenizer, backend="onnxruntime")  # type: ignore[arg-type]
    sound = VisionLanguageModel(engine, tokenizer, backend="onnxruntime")
    query = Query(query_id="q", question="What is it?", max_tokens=4, **fields)
    answers: list[Answer] = []

    with pytest.raises(NumericsError, match=r"every logit must be a finite number, got .* of"):
        vlm.answer_all([Request(query, answers.append)], [FRAME])
    vlm.answer_all([Request(query, answers.append)], [FRAME])

    failed, answered = answers
    assert (failed.finish_reason, failed.probabilities) == (FinishReason.FAILED, ())
    assert "nvila parity" in failed.error
    expected = sound.answer(query, [FRAME])
    assert (answered.text, answered.probabilities) == (expected.text, expected.probabilities)


@pytest.mark.parametrize("bad", BAD)
def test_no_step_takes_what_is_no_number(bad: float) -> None:
    logits_V = np.array([0.0, bad, 2.0], np.float32)

    for act in (
        lambda: check_finite(logits_V),
        lambda: most_likely(logits_V, np.array([1])),
        lambda: score_token(logits_V, 2),
        lambda: score_sequences(logits_V, iter(()), [[0], [2]]),
        lambda: score_sequences(np.zeros(3, np.float32), iter((bad,)), [[0, 1], [2]]),
    ):
        with pytest.raises(NumericsError):
            act()
