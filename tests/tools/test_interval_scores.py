"""Scores of intervals, and the suite that takes them, with answers whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.tools.interval_scores import is_found, measure_interval, temporal_iou
from nvila_ros.tools.suite_scores import as_dict, as_table, score
from nvila_ros.tools.suites import SUITES
from nvila_ros.types import Answer, FinishReason, Frame, Query
from nvila_ros.world.questions import EvalCase
from nvila_ros.world.timed_events import ABSENT, NONE, eval_timed_case

SUITE = SUITES["tiny-world-when"]
ends = st.integers(0, 60).flatmap(lambda start: st.tuples(st.just(start), st.integers(start, 60)))


def answered(intervals: list[dict[str, float]], reason: FinishReason = FinishReason.STOP) -> Answer:
    text = json.dumps({"intervals": intervals}) if reason is FinishReason.STOP else ""
    return Answer(query=Query(query_id="q", question="x"), finish_reason=reason, text=text)


class LateTeller:
    """Knows the suite, and tells every interval so many seconds late."""

    def __init__(self, late_s: float) -> None:
        self.late_s = late_s

    def answer(self, query: Query, frames: Sequence[Frame]) -> Answer:
        assert query.answer_type == "when"
        kind, index = query.query_id.rsplit("-", 1)
        case = eval_timed_case(kind, int(index))
        assert len(frames) == query.num_frames == len(case.times_s)
        if case.question.answer == NONE:
            return answered([])
        start, end = (float(word) + self.late_s for word in case.question.answer.split())
        return answered([{"start_s": start, "end_s": end}, {"start_s": 9.0, "end_s": 9.0}])


@given(ends, ends)
def test_iou_is_that_of_sets_of_instants(one: tuple[int, int], other: tuple[int, int]) -> None:
    first, second = set(range(*one)), set(range(*other))
    want = len(first & second) / len(first | second) if first | second else 0.0

    assert temporal_iou(one, other) == pytest.approx(want)


def test_late_answers_are_late_by_so_many_gaps_and_truths_end_with_the_last_frame() -> None:
    scores = score(LateTeller(0.1), ("moves", ABSENT), 10, lambda *_: None, suite=SUITE)

    assert scores["moves"].accuracy == scores[ABSENT].accuracy == 1
    assert scores["moves"].means["gaps"] == pytest.approx(0.1 * 7 / 4)
    assert 0.7 < scores["moves"].means["iou"] < 1
    assert as_dict(scores)["measures"] == {"moves": scores["moves"].means}
    assert [column.header for column in as_table(scores).columns][4:6] == ["gaps", "iou"]
    case = EvalCase(None, eval_timed_case("gone", 0).question, tuple(i / 3 for i in range(13)))
    start = float(case.question.answer.split()[0])
    assert measure_interval(case, answered([{"start_s": start, "end_s": 4.0}])) == pytest.approx({"iou": 1, "gaps": 0})


@pytest.mark.parametrize("late_s", [5.0, None])
def test_far_away_and_missed_are_wrong(late_s: float | None) -> None:
    case = eval_timed_case("moves", 3)
    start, end = map(float, case.question.answer.split())
    answer = answered([] if late_s is None else [{"start_s": start + late_s, "end_s": end + late_s}])

    assert not is_found(case, answer)
    assert measure_interval(case, answer)["iou"] == 0
    assert ("gaps" in measure_interval(case, answer)) == (late_s is not None)


def test_what_does_not_happen_must_be_said_not_to() -> None:
    case = eval_timed_case(ABSENT, 0)

    assert is_found(case, answered([]))
    assert not is_found(case, answered([{"start_s": 0.0, "end_s": 1.0}]))
    assert not is_found(case, answered([], FinishReason.FAILED))
    assert measure_interval(case, answered([])) == {}
