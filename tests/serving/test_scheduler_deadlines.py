"""Which queries are not begun, since their deadline cannot be met; how long an answer takes at least."""

from __future__ import annotations

from typing import Any

import pytest

from nvila_ros.serving.scheduler import NUM_TIMED
from nvila_ros.types import FinishReason
from tests.serving.scheduler_harness import S, SchedulerHarness


def test_query_that_cannot_be_answered_in_time_is_not_begun_until_hope_returns() -> None:
    harness = SchedulerHarness()
    harness.submit("slow")
    harness.pop()
    harness.finish("slow", work_s=2.0)
    outcomes = []
    for i in range(5):
        harness.submit(f"late {i}", deadline_ns=S)
        outcomes.append(harness.pop())
        for query_id in outcomes[-1]:
            harness.finish(query_id)

    assert outcomes == [[], [], [], [], ["late 4"]]  # 2 s, 1.6, 1.28, 1.02, 0.82
    assert "too short to answer in" in harness.answers[1].error


@pytest.mark.parametrize(("left_s", "is_begun"), [(0.5, False), (0.999, False), (1.0, True), (2.0, True), (3.5, True)])
def test_deadline_is_compared_with_the_fastest_answer_not_the_slowest_last_or_mean(
    left_s: float, is_begun: bool
) -> None:
    harness = SchedulerHarness()
    harness.answer_each([4.0, 1.0, 3.0])
    harness.submit("late", 7 * S, deadline_ns=7 * S + round(left_s * S))

    assert harness.pop(7 * S) == ["late"] * is_begun


@pytest.mark.parametrize(("num_slow", "is_begun"), [(NUM_TIMED - 1, True), (NUM_TIMED, False)])
def test_fastest_answer_is_forgotten_after_enough_slower_ones(num_slow: int, is_begun: bool) -> None:
    harness = SchedulerHarness()
    harness.answer_each([1.0, *[4.0] * num_slow])
    harness.submit("late", deadline_ns=2 * S)

    assert harness.pop() == ["late"] * is_begun


def test_estimate_that_was_lowered_is_forgotten_like_any_other() -> None:
    harness = SchedulerHarness()
    harness.answer_each([1.0])
    harness.submit("hopeless", deadline_ns=S // 2)
    assert harness.pop() == []
    harness.answer_each([4.0] * NUM_TIMED)
    harness.submit("late", deadline_ns=2 * S)

    assert harness.pop() == []


def test_time_that_an_answer_waited_is_not_part_of_how_long_the_next_takes() -> None:
    harness = SchedulerHarness()
    harness.answer_each([1.0], queue_s=3.0)
    harness.submit("in time", deadline_ns=S)

    assert harness.pop() == ["in time"]


def test_answer_that_was_cut_off_says_nothing_about_how_long_the_next_takes() -> None:
    harness = SchedulerHarness()
    harness.submit("cut off")
    harness.pop()
    harness.finish("cut off", FinishReason.FAILED, work_s=3.0)
    harness.submit("next", deadline_ns=S)

    assert harness.pop() == ["next"]


@pytest.mark.parametrize(
    ("fields", "is_begun"),
    [
        ({}, False),
        ({"max_tokens": 127}, False),  # as many bits as 64
        ({"max_tokens": 128}, True),
        ({"num_frames": 4}, True),
        ({"answer_type": "integer"}, True),
        ({"choices": ("left", "right")}, True),
    ],
)
def test_deadline_is_compared_with_answers_of_its_kind_only(fields: dict[str, Any], is_begun: bool) -> None:
    harness = SchedulerHarness()
    kind = {"max_tokens": 64, "num_frames": 8}
    harness.answer_each([3.0], **kind)
    harness.submit("late", deadline_ns=S, **kind | fields)

    assert harness.pop() == ["late"] * is_begun


def test_many_that_are_not_begun_ease_the_expectation_once() -> None:
    harness = SchedulerHarness(capacity=9)
    harness.submit("slow")
    harness.pop()
    harness.finish("slow", work_s=2.0)
    for i in range(9):
        harness.submit(f"late {i}", deadline_ns=S)

    assert harness.pop() == []
    assert [reason for _, reason in harness.ended()] == ["STOP", *["DEADLINE"] * 9]
