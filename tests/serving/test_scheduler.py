from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvila_ros.serving.scheduler import MAX_PASSES, SHUTTING_DOWN, Ticket
from nvila_ros.types import Answer, FinishReason, Query
from tests.serving.scheduler_desk import Desk, S


def test_higher_priority_goes_first_and_equals_in_order_of_arrival() -> None:
    desk = Desk(capacity=4)
    for query_id, priority in (("a", 0), ("b", 2), ("c", 0), ("d", 2)):
        desk.submit(query_id, priority=priority)

    order = []
    for _ in range(4):
        (query_id,) = desk.pop()
        order.append(query_id)
        desk.finish(query_id)

    assert order == ["b", "d", "a", "c"]


def test_full_queue_rejects_and_names_the_limit() -> None:
    desk = Desk(capacity=1)
    assert desk.submit("a")

    assert not desk.submit("b")

    assert desk.told() == [("b", "REJECTED")]
    assert "queue_size = 1" in desk.answers[0].error


def test_running_query_takes_no_place_in_the_queue() -> None:
    desk = Desk(capacity=1)
    desk.submit("a")
    desk.pop()

    assert desk.submit("b")


def test_deadline_that_passed_while_waiting_is_answered_without_work() -> None:
    desk = Desk()
    desk.submit("a", now_ns=0, deadline_ns=2 * S)

    assert desk.pop(now_ns=3 * S) == []

    assert desk.told() == [("a", "DEADLINE")]
    assert desk.answers[0].timings.total_s == 3


def test_deadline_of_a_waiting_query_is_told_while_another_runs() -> None:
    desk = Desk()
    desk.submit("a")
    desk.submit("b", deadline_ns=S)
    desk.pop()

    assert desk.should_stop("a", 2 * S) is None

    assert desk.told() == [("b", "DEADLINE")]


def test_running_query_stops_at_its_deadline() -> None:
    desk = Desk()
    desk.submit("a", deadline_ns=S)
    desk.pop(now_ns=0)

    assert desk.should_stop("a", S - 1) is None
    assert desk.should_stop("a", S) is FinishReason.DEADLINE


def test_waiting_query_is_canceled_at_once() -> None:
    desk = Desk()
    desk.submit("a")

    assert desk.scheduler.cancel("a", 0)

    assert desk.told() == [("a", "CANCELED")]
    assert desk.pop() == []


def test_running_query_is_told_to_stop_when_canceled() -> None:
    desk = Desk()
    desk.submit("a")
    desk.pop()

    assert desk.scheduler.cancel("a", 0)

    assert desk.told() == []
    assert desk.should_stop("a") is FinishReason.CANCELED


def test_cancel_does_not_reach_the_next_query() -> None:
    desk = Desk()
    for query_id in "ab":
        desk.submit(query_id)
    desk.pop()
    desk.scheduler.cancel("a", 0)
    desk.finish("a", FinishReason.CANCELED)

    assert desk.pop() == ["b"]
    assert desk.should_stop("b") is None


@pytest.mark.parametrize("is_known", [True, False])
def test_query_that_is_over_cannot_be_canceled(is_known: bool) -> None:
    desk = Desk()
    if is_known:
        desk.submit("a")
        desk.pop()
        desk.finish("a")

    assert not desk.scheduler.cancel("a", 0)


def test_close_answers_all_and_says_why() -> None:
    desk = Desk()
    for query_id in "abc":
        desk.submit(query_id)
    desk.pop()

    desk.scheduler.close(0)
    assert desk.should_stop("a") is FinishReason.CANCELED
    desk.finish("a", FinishReason.CANCELED)
    desk.submit("d")

    assert desk.told() == [("b", "CANCELED"), ("c", "CANCELED"), ("a", "CANCELED"), ("d", "REJECTED")]
    assert {answer.error for answer in desk.answers} == {SHUTTING_DOWN}


def test_wait_ends_when_a_query_comes_and_when_closed() -> None:
    desk = Desk()
    waits: list[bool] = []
    thread = threading.Thread(target=lambda: waits.append(desk.scheduler.wait()))
    thread.start()
    desk.submit("a")
    thread.join(60)
    assert waits == [True]

    desk.scheduler.close(0)
    assert not desk.scheduler.wait()


def test_query_that_cannot_be_answered_in_time_is_not_begun_until_hope_returns() -> None:
    desk = Desk()
    desk.submit("slow")
    desk.pop()
    desk.finish("slow", work_s=2.0)
    outcomes = []
    for i in range(5):
        desk.submit(f"late {i}", deadline_ns=S)
        outcomes.append(desk.pop())
        for query_id in outcomes[-1]:
            desk.finish(query_id)

    assert outcomes == [[], [], [], [], ["late 4"]]  # 2 s, 1.6, 1.28, 1.02, 0.82
    assert "too short to answer in" in desk.answers[1].error


def test_short_answer_is_not_judged_by_long_ones() -> None:
    desk = Desk()
    desk.submit("long", max_tokens=64)
    desk.pop()
    desk.finish("long", work_s=3.0)
    desk.submit("short", max_tokens=1, deadline_ns=S)

    assert desk.pop() == ["short"]


def test_many_that_are_not_begun_ease_the_expectation_once() -> None:
    desk = Desk(capacity=9)
    desk.submit("slow")
    desk.pop()
    desk.finish("slow", work_s=2.0)
    for i in range(9):
        desk.submit(f"late {i}", deadline_ns=S)

    assert desk.pop() == []
    assert [reason for _, reason in desk.told()] == ["STOP", *["DEADLINE"] * 9]


def test_asker_that_cannot_be_told_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()

    def fail(answer: Answer) -> None:
        raise RuntimeError("the asker is gone")

    desk.queries["gone"] = Query(query_id="gone", question="?")
    desk.scheduler.submit([Ticket(query=desk.queries["gone"], on_answer=fail)], 0)
    desk.submit("next")
    desk.pop()
    desk.finish("gone")

    assert desk.pop() == ["next"]
    assert [record.message for record in caplog.records] == ["query_id=gone: its answer cannot be told"]


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, each query gets exactly one answer, and the line's rules hold."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(capacity=3)
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
        self.desk.submit(query_id, self.now_ns, standing=standing, **fields)

    @rule(seconds=st.integers(0, 2))
    def pass_time(self, seconds: int) -> None:
        self.now_ns += seconds * S

    @precondition(lambda self: not self.running)
    @rule()
    def pop(self) -> None:
        self.running = self.desk.pop(self.now_ns)
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
        stop = self.desk.should_stop(query_id, self.now_ns)
        self.desk.finish(query_id, stop or FinishReason.STOP, work_s)
        if (query_id, "REPLACED") in self.desk.told():
            self.place[self.asked(self.submitted[query_id].standing)] = self.place[query_id]

    @precondition(lambda self: self.submitted)
    @rule(pick=st.integers(0, 100))
    def cancel(self, pick: int) -> None:
        self.desk.scheduler.cancel(str(pick % len(self.submitted)), self.now_ns)

    @rule(name=st.sampled_from("xyz"))
    def cancel_standing(self, name: str) -> None:
        self.desk.scheduler.cancel_standing(name, self.now_ns)

    @rule()
    def close(self) -> None:
        self.desk.scheduler.close(self.now_ns)
        self.is_closed = True

    @invariant()
    def every_query_is_answered_once_or_still_open(self) -> None:
        answered = [answer.query.query_id for answer in self.desk.answers]
        state = self.desk.scheduler.state()
        assert len(answered) == len(set(answered))
        assert len(answered) + state.num_waiting + state.num_running == len(self.submitted)
        assert state.num_running == len(self.running)
        assert sum(state.num_ended.values()) == len(answered)
        waiting = [self.submitted[query_id] for query_id in self.waiting()]
        assert len([query for query in waiting if not query.standing]) <= (0 if self.is_closed else 3)
        names = [query.standing for query in waiting if query.standing]
        assert len(names) == len(set(names))

    def waiting(self) -> list[str]:
        over = {answer.query.query_id for answer in self.desk.answers} | set(self.running)
        return [query_id for query_id in self.submitted if query_id not in over]

    def asked(self, standing: str) -> str:
        """Return the asking of a standing query that waits, if one does."""
        asked = [query_id for query_id in self.waiting() if standing and self.submitted[query_id].standing == standing]
        return asked[0] if asked else ""

    def waiting_best(self) -> int:
        return max((self.submitted[query_id].priority for query_id in self.waiting()), default=-1)


TestSchedulerMachine = SchedulerMachine.TestCase
