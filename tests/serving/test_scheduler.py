from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from nvila_ros.request import Request, RequestState
from nvila_ros.serving.scheduler import SHUTTING_DOWN, Scheduler
from nvila_ros.types import Answer, FinishReason, Query
from tests.serving.scheduler_harness import S, SchedulerHarness


def test_higher_priority_goes_first_and_equals_in_order_of_arrival() -> None:
    harness = SchedulerHarness(capacity=4)
    for query_id, priority in (("a", 0), ("b", 2), ("c", 0), ("d", 2)):
        harness.submit(query_id, priority=priority)

    order = []
    for _ in range(4):
        (query_id,) = harness.pop()
        order.append(query_id)
        harness.finish(query_id)

    assert order == ["b", "d", "a", "c"]


def test_request_is_new_waits_runs_and_ends() -> None:
    harness = SchedulerHarness()
    request = harness.new("a")
    states = [request.state]
    harness.scheduler.submit([request], 0)
    states.append(request.state)
    harness.pop()
    states.append(request.state)
    harness.finish("a")

    assert [*states, request.state] == [
        RequestState.NEW,
        RequestState.WAITING,
        RequestState.RUNNING,
        RequestState.ENDED,
    ]


def test_every_reason_is_counted_from_the_start() -> None:
    assert SchedulerHarness().scheduler.state().num_ended == {reason.name.lower(): 0 for reason in FinishReason}


def test_full_queue_rejects_and_names_the_limit() -> None:
    harness = SchedulerHarness(capacity=1)
    assert harness.submit("a")

    assert not harness.submit("b")

    assert harness.ended() == [("b", "REJECTED")]
    assert "queue_size = 1" in harness.answers[0].error


def test_running_query_takes_no_place_in_the_queue() -> None:
    harness = SchedulerHarness(capacity=1)
    harness.submit("a")
    harness.pop()

    assert harness.submit("b")


def test_deadline_that_passed_while_waiting_is_answered_without_work() -> None:
    harness = SchedulerHarness()
    harness.submit("a", now_ns=0, deadline_ns=2 * S)

    assert harness.pop(now_ns=3 * S) == []

    assert harness.ended() == [("a", "DEADLINE")]
    assert harness.answers[0].timings.total_s == 3


def test_deadline_of_a_waiting_query_is_told_while_another_runs() -> None:
    harness = SchedulerHarness()
    harness.submit("a")
    harness.submit("b", deadline_ns=S)
    harness.pop()

    assert harness.should_stop("a", 2 * S) is None

    assert harness.ended() == [("b", "DEADLINE")]


def test_running_query_stops_at_its_deadline() -> None:
    harness = SchedulerHarness()
    harness.submit("a", deadline_ns=S)
    harness.pop(now_ns=0)

    assert harness.should_stop("a", S - 1) is None
    assert harness.should_stop("a", S) is FinishReason.DEADLINE


def test_waiting_query_is_canceled_at_once() -> None:
    harness = SchedulerHarness()
    harness.submit("a")

    assert harness.scheduler.cancel("a", 0)

    assert harness.ended() == [("a", "CANCELED")]
    assert harness.pop() == []


def test_running_query_is_told_to_stop_when_canceled() -> None:
    harness = SchedulerHarness()
    harness.submit("a")
    harness.pop()

    assert harness.scheduler.cancel("a", 0)

    assert harness.ended() == []
    assert harness.should_stop("a") is FinishReason.CANCELED


def test_cancel_does_not_reach_the_next_query() -> None:
    harness = SchedulerHarness()
    for query_id in "ab":
        harness.submit(query_id)
    harness.pop()
    harness.scheduler.cancel("a", 0)
    harness.finish("a", FinishReason.CANCELED)

    assert harness.pop() == ["b"]
    assert harness.should_stop("b") is None


@pytest.mark.parametrize("is_known", [True, False])
def test_query_that_is_over_cannot_be_canceled(is_known: bool) -> None:
    harness = SchedulerHarness()
    if is_known:
        harness.submit("a")
        harness.pop()
        harness.finish("a")

    assert not harness.scheduler.cancel("a", 0)


def test_close_answers_all_and_says_why() -> None:
    harness = SchedulerHarness()
    for query_id in "abc":
        harness.submit(query_id)
    harness.pop()

    harness.scheduler.close(0)
    assert harness.should_stop("a") is FinishReason.CANCELED
    harness.finish("a", FinishReason.CANCELED)
    harness.submit("d")

    assert harness.ended() == [("b", "CANCELED"), ("c", "CANCELED"), ("a", "CANCELED"), ("d", "REJECTED")]
    assert {answer.error for answer in harness.answers} == {SHUTTING_DOWN}


def test_all_are_canceled_with_a_reason_and_what_comes_later_is_taken() -> None:
    harness = SchedulerHarness(capacity=2)
    harness.submit("running")
    harness.pop()
    harness.submit("waiting")
    harness.submit("watch", standing="watch")

    harness.scheduler.cancel_all(S, "the node was deactivated")

    assert [(a.query.query_id, a.finish_reason.name, a.error, a.timings.total_s) for a in harness.answers] == [
        ("waiting", "CANCELED", "the node was deactivated", 1),
        ("watch", "CANCELED", "the node was deactivated", 1),
    ]
    assert harness.should_stop("running") is FinishReason.CANCELED
    harness.finish("running", FinishReason.CANCELED)
    assert harness.submit("later")
    assert harness.pop() == ["later"]
    assert harness.should_stop("later") is None


def test_wait_ends_when_a_query_comes_and_when_closed() -> None:
    harness = SchedulerHarness()
    waits: list[bool] = []
    thread = threading.Thread(target=lambda: waits.append(harness.scheduler.wait()))
    thread.start()
    harness.submit("a")
    thread.join(60)
    assert waits == [True]

    harness.scheduler.close(0)
    assert not harness.scheduler.wait()


def test_wait_ends_when_its_time_has_passed() -> None:
    harness = SchedulerHarness()
    harness.submit("held", is_held=True)

    assert harness.scheduler.wait(0.01)
    assert harness.pop() == []


def test_work_that_nobody_asked_for_goes_on_until_there_is_other_work_or_will_be_none() -> None:
    harness = SchedulerHarness()
    assert not harness.scheduler.has_other_work()
    harness.submit("a")
    assert harness.scheduler.has_other_work()
    harness.pop()
    assert not harness.scheduler.has_other_work()

    harness.scheduler.close(0)
    assert harness.scheduler.has_other_work()


def test_asker_that_cannot_be_told_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    harness = SchedulerHarness()

    def fail(answer: Answer) -> None:
        raise RuntimeError("the asker is gone")

    harness.requests["gone"] = Request(Query(query_id="gone", question="?"), fail)
    harness.scheduler.submit([harness.requests["gone"]], 0)
    harness.submit("next")
    harness.pop()
    harness.finish("gone")

    assert harness.pop() == ["next"]
    assert [record.message for record in caplog.records] == ["query_id=gone: its answer cannot be delivered"]


def test_held_request_waits_in_its_place_until_it_is_released() -> None:
    harness = SchedulerHarness()
    harness.submit("held", is_held=True)
    harness.submit("next")

    assert harness.pop() == ["next"]
    harness.finish("next")
    assert not harness.scheduler.has_other_work()
    assert harness.pop() == []
    harness.scheduler.release(harness.requests["held"])
    assert harness.pop() == ["held"]


def test_held_request_takes_room_in_the_queue() -> None:
    harness = SchedulerHarness(capacity=1)
    harness.submit("held", is_held=True)

    assert not harness.submit("next")
    assert "queue_size = 1" in harness.answers[0].error


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda scheduler: scheduler.cancel("held", 0), "CANCELED"),
        (lambda scheduler: scheduler.expire(2 * S), "DEADLINE"),
        (lambda scheduler: scheduler.close(0), "CANCELED"),
        (lambda scheduler: scheduler.abort(0, "the worker is gone"), "FAILED"),
    ],
)
def test_held_request_that_has_ended_is_neither_released_nor_refused(
    end: Callable[[Scheduler], object], reason: str
) -> None:
    harness = SchedulerHarness()
    harness.submit("held", is_held=True, deadline_ns=S)
    end(harness.scheduler)

    harness.scheduler.release(harness.requests["held"])
    harness.scheduler.refuse(harness.requests["held"], FinishReason.INVALID, "too late", 0)

    assert harness.ended() == [("held", reason)]
    assert harness.pop() == []


@pytest.mark.parametrize(
    ("end", "reason", "error"),
    [
        (lambda harness: harness.scheduler.cancel("a", S), "CANCELED", "canceled before its turn came"),
        (lambda harness: harness.scheduler.cancel_standing("watch", S), "CANCELED", "canceled before its turn came"),
        (lambda harness: harness.scheduler.expire(9 * S), "DEADLINE", "deadline_s passed before its turn came"),
        (lambda harness: harness.pop(8 * S), "DEADLINE", "what is left of deadline_s is too short to answer in"),
        (
            lambda harness: harness.submit("b", S, standing="watch"),
            "REPLACED",
            "'watch' was asked anew before its turn",
        ),
        (lambda harness: harness.scheduler.close(S), "CANCELED", SHUTTING_DOWN),
        (lambda harness: harness.scheduler.abort(S, "the worker is gone"), "FAILED", "the worker is gone"),
    ],
    ids=["cancel", "cancel_standing", "expire", "hopeless", "replaced", "close", "abort"],
)
def test_request_that_ends_while_it_waits_says_why(
    end: Callable[[SchedulerHarness], object], reason: str, error: str
) -> None:
    harness = SchedulerHarness()
    harness.answer_each([3.0], standing="watch")
    harness.submit("a", S, standing="watch", deadline_ns=9 * S)

    end(harness)

    assert [(a.query.query_id, a.finish_reason.name, a.error) for a in harness.answers[1:]] == [("a", reason, error)]
    assert harness.scheduler.state().num_ended[reason.lower()] == 1


def test_held_request_that_breaks_a_rule_is_answered_and_leaves_the_queue() -> None:
    harness = SchedulerHarness(capacity=1)
    harness.submit("held", is_held=True)

    harness.scheduler.refuse(harness.requests["held"], FinishReason.INVALID, "its schema is bad", 2 * S)

    assert [(answer.finish_reason.name, answer.error) for answer in harness.answers] == [
        ("INVALID", "its schema is bad")
    ]
    assert harness.answers[0].timings.total_s == 2
    assert harness.submit("next")


def test_requests_that_a_dead_worker_leaves_fail_with_the_reason_and_nothing_is_taken_any_more() -> None:
    harness = SchedulerHarness()
    harness.submit("running")
    harness.submit("waiting")
    harness.pop()

    harness.scheduler.abort(0, "the worker is gone")

    assert not harness.submit("late")
    assert [(answer.finish_reason.name, answer.error) for answer in harness.answers] == [
        ("FAILED", "the worker is gone"),
        ("FAILED", "the worker is gone"),
        ("REJECTED", "the worker is gone"),
    ]
    state = harness.scheduler.state()
    assert (state.num_waiting, state.num_running) == (0, 0)
    assert state.num_ended["failed"] == 2
    assert not harness.scheduler.wait()
