"""The suite scores what is said against the truth, kind by kind; its frames are those of the case."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nvila_ros.errors import CheckpointError
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.cli import main
from nvila_ros.tools.suite_scores import NUM_SHOWN_WRONG, SuiteScore, as_dict, as_table, score
from nvila_ros.tools.suites import DEFAULT_SUITE, SUITES, Suite
from nvila_ros.types import Answer, FinishReason, Frame, Query
from nvila_ros.world.questions import CLIP_KINDS, EVAL_CLIP_FRAMES, EVAL_KINDS, EvalCase
from nvila_ros.world.wide_suite import TIERS
from tests.full_disk import largest_file


class Oracle:
    """Knows the suite, and says something else to some of the kinds."""

    def __init__(self, *wrong_kinds: str, suite: Suite = SUITES[DEFAULT_SUITE]) -> None:
        self.wrong_kinds, self.suite = wrong_kinds, suite

    def answer(self, query: Query, frames: Sequence[Frame]) -> Answer:
        kind, index = query.query_id.rsplit("-", 1)
        case = self.suite.case(kind, int(index))
        assert query.question == case.question.text
        assert not query.choices or case.question.answer in query.choices
        assert [frame.stamp_ns for frame in frames] == [round(t * 1e9) for t in case.times_s]
        assert np.array_equal(frames[-1].image, self.suite.render(case.scene, case.times_s[-1], 640, 480))
        text = "no idea" if kind in self.wrong_kinds else f" {case.question.answer.title().removesuffix('.')}. "
        if query.answer_type == "when":
            ends = zip(("start_s", "end_s"), map(float, re.findall(r"[\d.]+", text.rstrip(". "))), strict=False)
            text = json.dumps({"intervals": [found] if (found := dict(ends)) else []})
        probabilities = (0.9, *[0.1 / (len(query.choices) - 1)] * (len(query.choices) - 1)) if query.choices else ()
        return Answer(
            query=query,
            finish_reason=FinishReason.STOP,
            text=text,
            choices=query.choices,
            probabilities=probabilities,
        )


def _ignore(kind: str, index: int, case: EvalCase, answer: Answer) -> None:
    pass


@pytest.mark.parametrize(
    ("wrong_kinds", "expected"),
    [
        ((), dict.fromkeys([*EVAL_KINDS, "overall"], 1.0)),
        (EVAL_KINDS, dict.fromkeys([*EVAL_KINDS, "overall"], 0.0)),
        (
            ("motion", "where"),
            {"color": 1.0, "motion": 0.0, "where": 0.0, "overall": pytest.approx(1 - 2 / len(EVAL_KINDS))},
        ),
    ],
)
def test_scores_are_the_share_of_right_answers(wrong_kinds: tuple[str, ...], expected: dict[str, float]) -> None:
    scores = as_dict(score(Oracle(*wrong_kinds), EVAL_KINDS, 3, _ignore))

    assert scores.keys() == {*EVAL_KINDS, "overall"}
    assert {kind: scores[kind] for kind in expected} == expected


def test_motion_is_asked_of_a_clip_and_the_rest_of_one_frame() -> None:
    asked: dict[str, int] = {}

    score(Oracle(), EVAL_KINDS, 1, lambda kind, index, case, answer: asked.update({kind: len(case.times_s)}))

    assert asked == {kind: EVAL_CLIP_FRAMES if kind in CLIP_KINDS else 1 for kind in EVAL_KINDS}


@pytest.mark.parametrize("name", SUITES)
def test_each_suite_is_asked_in_its_own_kinds(name: str) -> None:
    suite = SUITES[name]
    kinds = [kind for kind in suite.kinds if name != "tiny-world-wide" or not TIERS[kind].look.photograph_share]

    scores = as_dict(score(Oracle(suite=suite), kinds, 1, _ignore, suite=suite))

    assert {kind: scores[kind] for kind in (*kinds, "overall")} == dict.fromkeys([*kinds, "overall"], 1.0)


def test_choices_are_asked_once_more_and_say_how_far_to_trust_their_probabilities() -> None:
    suite = SUITES["tiny-world-wide"]

    scores = score(Oracle("light", suite=suite), ("usual", "light"), 8, _ignore, suite=suite)

    found = as_dict(scores)
    assert found["ece"]["usual"] == pytest.approx(0.1)
    assert found["ece"]["light"] == pytest.approx(0.9)
    assert found["sure"] == {"usual": 0, "light": 0}
    assert [str(column.header) for column in as_table(scores).columns][4:7] == ["ECE", "p >= 0.99", "of those wrong"]


@pytest.mark.parametrize(
    ("chosen", "error", "num_sure", "wrong"),
    [
        ([], 0.0, 0, 0.0),
        ([(1.0, True), (0.99, False)], 0.495, 2, 0.5),
        ([(0.5, True), (0.5, False), (0.995, True)], 0.005 / 3, 1, 0.0),
        ([(0.6, False), (0.9, True)], 0.35, 0, 0.0),
    ],
)
def test_calibration_is_the_gap_between_probability_and_share_of_right(
    chosen: list[tuple[float, bool]], error: float, num_sure: int, wrong: float
) -> None:
    each = SuiteScore(num_asked=len(chosen), chosen=chosen)

    assert each.calibration_error == pytest.approx(error)
    assert (each.num_sure, each.sure_and_wrong) == (num_sure, wrong)


def test_suite_is_filmed_by_its_own_renderer() -> None:
    pixels = np.full((480, 640, 3), 7, np.uint8)
    suite = replace(SUITES[DEFAULT_SUITE], render=lambda scene, t_s, width, height: pixels)
    shown: list[np.ndarray] = []

    class Watcher:
        def answer(self, query: Query, frames: Sequence[Frame]) -> Answer:
            shown.extend(frame.image for frame in frames)
            return Answer(query=query, finish_reason=FinishReason.STOP)

    score(Watcher(), ("motion",), 1, _ignore, suite=suite)

    assert len(shown) == EVAL_CLIP_FRAMES
    assert all(image is pixels for image in shown)


def test_kind_of_another_suite_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "nvila-tiny", "--suite", "tiny-world-scale", "--kinds", "motion"]) == 2

    assert "--kinds must be some of small-color," in capsys.readouterr().err


def test_table_shows_a_few_wrong_answers() -> None:
    table = as_table(score(Oracle("color"), ("color", "count"), 5, _ignore))

    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ["color", "count"]
    assert columns[3] == ["0.000", "1.000"]
    assert str(columns[4][0]).count("'no idea'") == NUM_SHOWN_WRONG
    assert columns[4][1] == ""


def test_checkpoint_is_scored_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        find_checkpoint("nvila-tiny")
    except CheckpointError as missing:
        pytest.skip(str(missing))
    out = tmp_path / "cases.jsonl"

    code = main(["eval", "nvila-tiny", "--questions", "2", "--kinds", "color,motion", "--out", str(out), "--json"])

    told = json.loads(capsys.readouterr().out)
    cases = [json.loads(line) for line in out.read_text().splitlines()]
    assert code == 0
    assert told.keys() == {"color", "motion", "overall", "questions", "model", "backend", "precision"}
    assert told["overall"] == sum(case["is_correct"] for case in cases) / 4
    assert [(case["kind"], case["index"]) for case in cases] == [(k, i) for k in ("color", "motion") for i in (0, 1)]


def test_file_that_cannot_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "nvila-tiny", "--questions", "1", "--out", str(tmp_path / "none" / "x")]) == 2

    assert "cannot be written" in capsys.readouterr().err


def test_full_disk_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with largest_file(100):
        code = main(["eval", "nvila-tiny", "--questions", "1", "--kinds", "color", "--out", str(tmp_path / "cases")])

    assert code == 2
    assert "cases cannot be written: File too large; make room, then run again" in capsys.readouterr().err
