"""nvila-tiny-when tells when things happen, and that others do not, on cases that its training never drew."""

from __future__ import annotations

import json
import re

import pytest

from nvila_ros.serving.pipeline import VisionLanguageModel, load_model
from nvila_ros.tools.suite_scores import SuiteScore, film_case, score
from nvila_ros.tools.suites import SUITES
from nvila_ros.types import Query
from nvila_ros.world.timed_events import ABSENT, WHEN, eval_timed_case

pytestmark = pytest.mark.slow
SUITE = SUITES["tiny-world-when"]
NUM = 8


@pytest.fixture(scope="module")
def model() -> VisionLanguageModel:
    return load_model("nvila-tiny-when", threads=1)


@pytest.fixture(scope="module")
def scores(model: VisionLanguageModel) -> dict[str, SuiteScore]:
    return score(model, SUITE.kinds, NUM, lambda *_: None, suite=SUITE)


@pytest.mark.parametrize("kind", [kind for kind in SUITE.kinds if kind != ABSENT])
def test_begin_and_end_are_found(scores: dict[str, SuiteScore], kind: str) -> None:
    assert scores[kind].num_right >= NUM - 1
    assert scores[kind].means["iou"] > 0.7
    assert scores[kind].means["gaps"] < 1


def test_what_does_not_happen_has_no_interval(scores: dict[str, SuiteScore]) -> None:
    assert scores[ABSENT].num_right >= NUM - 1


def test_text_tells_times_in_seconds_of_the_clip(model: VisionLanguageModel) -> None:
    case = eval_timed_case("moves", 1)
    frames = film_case(case)

    text = model.answer(Query(query_id="q", question=WHEN.format(case.question.text), num_frames=8), frames).text
    told = json.loads(
        model.answer(Query(query_id="q", question=case.question.text, answer_type="when", num_frames=8), frames).text
    )

    start, end = map(float, re.fullmatch(r"<(\d\.\d\d)> <(\d\.\d\d)>", text).groups())
    assert told["method"] == "time_tokens"
    assert start == pytest.approx(told["intervals"][0]["start_s"], abs=0.01)
    assert start <= end <= 4.0
