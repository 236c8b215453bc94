from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvila_ros.request import Request, RequestState
from nvila_ros.serving.scheduler import MAX_PASSES, NUM_TIMED, SHUTTING_DOWN, Scheduler
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


def answer_each(harness: SchedulerHarness, works_s: Sequence[float], queue_s: float = 0.0, **fields: Any) -> None:
    """Let queries be answered one after the other, each after so many seconds of work."""
    for k, work_s in enumerate(works_s):
        harness.submit(f"earlier {k}", **fields)
        harness.pop()
        harness.finish(f"earlier {k}", work_s=work_s, queue_s=queue_s)


@pytest.mark.parametrize(("left_s", "is_begun"), [(0.5, False), (0.999, False), (1.0, True), (2.0, True), (3.5, True)])
def test_deadline_is_compared_with_the_fastest_answer_not_the_slowest_last_or_mean(
    left_s: float, is_begun: bool
) -> None:
    harness = SchedulerHarness()
    answer_each(harness, [4.0, 1.0, 3.0])
    harness.submit("late", 7 * S, deadline_ns=7 * S + round(left_s * S))

    assert harness.pop(7 * S) == ["late"] * is_begun


@pytest.mark.parametrize(("num_slow", "is_begun"), [(NUM_TIMED - 1, True), (NUM_TIMED, False)])
def test_fastest_answer_is_forgotten_after_enough_slower_ones(num_slow: int, is_begun: bool) -> None:
    harness = SchedulerHarness()
    answer_each(harness, [1.0, *[4.0] * num_slow])
    harness.submit("late", deadline_ns=2 * S)

    assert harness.pop() == ["late"] * is_begun


def test_estimate_that_was_lowered_is_forgotten_like_any_other() -> None:
    harness = SchedulerHarness()
    answer_each(harness, [1.0])
    harness.submit("hopeless", deadline_ns=S // 2)
    assert harness.pop() == []
    answer_each(harness, [4.0] * NUM_TIMED)
    harness.submit("late", deadline_ns=2 * S)

    assert harness.pop() == []


def test_time_that_an_answer_waited_is_not_part_of_how_long_the_next_takes() -> None:
    harness = SchedulerHarness()
    answer_each(harness, [1.0], queue_s=3.0)
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
    answer_each(harness, [3.0], **kind)
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
    answer_each(harness, [3.0], standing="watch")
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


def test_threads_that_submit_cancel_and_work_at_once_lose_no_answer_and_give_none_twice() -> None:
    scheduler = Scheduler(capacity=4)
    answers: Counter[str] = Counter()
    lock = threading.Lock()

    def on_answer(answer: Answer) -> None:
        with lock:
            answers[answer.query.query_id] += 1

    def ask(name: str) -> None:
        rng = random.Random(name)
        for k in range(300):
            query = Query(query_id=f"{name}-{k}", question="?", standing=rng.choice(["", "", "a", "b"]))
            scheduler.submit([Request(query, on_answer)], k)
            if rng.random() < 0.3:
                scheduler.cancel(f"{name}-{rng.randrange(k + 1)}", k)

    def work() -> None:
        while scheduler.wait():
            for request in scheduler.pop(0):
                reason = scheduler.should_stop(request, 0) or FinishReason.STOP
                request.answer = Answer(query=request.query, finish_reason=reason)
                scheduler.finish(request, 0)

    worker = threading.Thread(target=work)
    askers = [threading.Thread(target=ask, args=(name,)) for name in "xyz"]
    for thread in (worker, *askers):
        thread.start()
    for thread in askers:
        thread.join(30)
    scheduler.close(0)
    worker.join(30)

    assert answers == {f"{name}-{k}": 1 for name in "xyz" for k in range(300)}
    state = scheduler.state()
    assert (state.num_waiting, state.num_running, sum(state.num_ended.values())) == (0, 0, 900)


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, each query gets exactly one answer, and the line's rules hold."""

    def __init__(self) -> None:
        super().__init__()
        self.harness = SchedulerHarness(capacity=3)
        self.now_ns = 0
        self.submitted: dict[str, Query] = {}
        self.running: list[str] = []
        self.place: dict[str, int] = {}  # in the line, of each query; a newer asking takes that of the older
        self.overtaken: Counter[int] = Counter()
        self.is_closed = False

    @rule(
        priority=st.integers(0, 2),
        deadline_s=st.none() | st.integers(1, 3),
        standing=st.sampled_from(["", "", "x", "y", "z"]),
        num_frames=st.integers(1, 2),
    )
    def submit(self, priority: int, deadline_s: int | None, standing: str, num_frames: int) -> None:
        query_id = str(len(self.submitted))
        deadline_ns = None if deadline_s is None else self.now_ns + deadline_s * S
        fields: dict[str, Any] = {"priority": priority, "deadline_ns": deadline_ns, "num_frames": num_frames}
        self.place[query_id] = self.place.get(self.asked(standing), int(query_id))
        self.submitted[query_id] = Query(query_id=query_id, question="?", standing=standing, **fields)
        self.harness.submit(query_id, self.now_ns, standing=standing, **fields)

    @rule(seconds=st.integers(0, 2))
    def pass_time(self, seconds: int) -> None:
        self.now_ns += seconds * S

    @precondition(lambda self: not self.running)
    @rule()
    def pop(self) -> None:
        self.running = self.harness.pop(self.now_ns)
        if not self.running:
            return
        group = [self.submitted[query_id] for query_id in self.running]
        assert len(group) == 1 or all(query.standing for query in group)
        assert len({(query.priority, query.clip) for query in group}) == 1
        assert self.waiting_best() <= group[0].priority
        for query_id in self.waiting():
            place = self.place[query_id]
            is_equal = self.submitted[query_id].priority == group[0].priority
            if is_equal and place < min(self.place[running] for running in self.running):
                self.overtaken[place] += 1
                assert self.overtaken[place] <= MAX_PASSES

    @precondition(lambda self: self.running)
    @rule(pick=st.integers(0, 9), work_s=st.floats(0, 4))
    def work(self, pick: int, work_s: float) -> None:
        query_id = self.running.pop(pick % len(self.running))
        stop = self.harness.should_stop(query_id, self.now_ns)
        self.harness.finish(query_id, stop or FinishReason.STOP, work_s)
        if (query_id, "REPLACED") in self.harness.ended():
            self.place[self.asked(self.submitted[query_id].standing)] = self.place[query_id]

    @precondition(lambda self: self.submitted)
    @rule(pick=st.integers(0, 100))
    def cancel(self, pick: int) -> None:
        self.harness.scheduler.cancel(str(pick % len(self.submitted)), self.now_ns)

    @rule(name=st.sampled_from("xyz"))
    def cancel_standing(self, name: str) -> None:
        self.harness.scheduler.cancel_standing(name, self.now_ns)

    @rule()
    def close(self) -> None:
        self.harness.scheduler.close(self.now_ns)
        self.is_closed = True

    @invariant()
    def every_query_is_answered_once_or_still_open(self) -> None:
        answered = [answer.query.query_id for answer in self.harness.answers]
        state = self.harness.scheduler.state()
        assert len(answered) == len(set(answered))
        assert len(answered) + state.num_waiting + state.num_running == len(self.submitted)
        assert state.num_running == len(self.running)
        assert sum(state.num_ended.values()) == len(answered)
        waiting = [self.submitted[query_id] for query_id in self.waiting()]
        assert len([query for query in waiting if not query.standing]) <= (0 if self.is_closed else 3)
        names = [query.standing for query in waiting if query.standing]
        assert len(names) == len(set(names))

    def waiting(self) -> list[str]:
        over = {answer.query.query_id for answer in self.harness.answers} | set(self.running)
        return [query_id for query_id in self.submitted if query_id not in over]

    def asked(self, standing: str) -> str:
        """Return the asking of a standing query that waits, if one does."""
        asked = [query_id for query_id in self.waiting() if standing and self.submitted[query_id].standing == standing]
        return asked[0] if asked else ""

    def waiting_best(self) -> int:
        return max((self.submitted[query_id].priority for query_id in self.waiting()), default=-1)


TestSchedulerMachine = SchedulerMachine.TestCase
