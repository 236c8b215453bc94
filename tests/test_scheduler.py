from __future__ import annotations

import threading

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvila_ros.scheduler import SHUTTING_DOWN, Scheduler, Ticket
from nvila_ros.types import Answer, FinishReason, Query

S = 1_000_000_000


class Desk:
    """A scheduler, and the answers that came out of it."""

    def __init__(self, capacity: int = 3) -> None:
        self.scheduler = Scheduler(capacity)
        self.answers: list[Answer] = []

    def submit(self, query_id: str, now_ns: int = 0, priority: int = 0, deadline_ns: int | None = None) -> bool:
        query = Query(query_id=query_id, question="?", priority=priority, accepted_ns=now_ns, deadline_ns=deadline_ns)
        return self.scheduler.submit(Ticket(query=query, on_answer=self.answers.append), now_ns)

    def pop(self, now_ns: int = 0) -> str | None:
        ticket = self.scheduler.pop(now_ns)
        return ticket.query.query_id if ticket else None

    def finish(self, query_id: str, reason: FinishReason = FinishReason.STOP) -> None:
        self.scheduler.finish(Answer(query=Query(query_id=query_id, question="?"), finish_reason=reason))

    def told(self) -> list[tuple[str, str]]:
        return [(answer.query.query_id, answer.finish_reason.name) for answer in self.answers]


def test_higher_priority_goes_first_and_equals_in_order_of_arrival() -> None:
    desk = Desk(capacity=4)
    for query_id, priority in (("a", 0), ("b", 2), ("c", 0), ("d", 2)):
        desk.submit(query_id, priority=priority)

    order = []
    for _ in range(4):
        query_id = desk.pop()
        assert query_id is not None
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

    assert desk.pop(now_ns=3 * S) is None

    assert desk.told() == [("a", "DEADLINE")]
    assert desk.answers[0].timings.total_s == 3


def test_deadline_of_a_waiting_query_is_told_while_another_runs() -> None:
    desk = Desk()
    desk.submit("a")
    desk.submit("b", deadline_ns=S)
    desk.pop()

    assert desk.scheduler.should_stop(2 * S) is None

    assert desk.told() == [("b", "DEADLINE")]


def test_running_query_stops_at_its_deadline() -> None:
    desk = Desk()
    desk.submit("a", deadline_ns=S)
    desk.pop(now_ns=0)

    assert desk.scheduler.should_stop(S - 1) is None
    assert desk.scheduler.should_stop(S) is FinishReason.DEADLINE


def test_waiting_query_is_canceled_at_once() -> None:
    desk = Desk()
    desk.submit("a")

    assert desk.scheduler.cancel("a", 0)

    assert desk.told() == [("a", "CANCELED")]
    assert desk.pop() is None


def test_running_query_is_told_to_stop_when_canceled() -> None:
    desk = Desk()
    desk.submit("a")
    desk.pop()

    assert desk.scheduler.cancel("a", 0)

    assert desk.told() == []
    assert desk.scheduler.should_stop(0) is FinishReason.CANCELED


def test_cancel_does_not_reach_the_next_query() -> None:
    desk = Desk()
    for query_id in "ab":
        desk.submit(query_id)
    desk.pop()
    desk.scheduler.cancel("a", 0)
    desk.finish("a", FinishReason.CANCELED)

    assert desk.pop() == "b"
    assert desk.scheduler.should_stop(0) is None


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
    assert desk.scheduler.should_stop(0) is FinishReason.CANCELED
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
    thread.join(5)
    assert waits == [True]

    desk.scheduler.close(0)
    assert not desk.scheduler.wait()


class SchedulerMachine(RuleBasedStateMachine):
    """Whatever happens in whatever order, each query gets exactly one answer."""

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(capacity=3)
        self.now_ns = 0
        self.submitted: list[str] = []
        self.running: str | None = None
        self.is_closed = False

    @rule(priority=st.integers(0, 2), deadline_s=st.none() | st.integers(1, 3))
    def submit(self, priority: int, deadline_s: int | None) -> None:
        query_id = str(len(self.submitted))
        self.submitted.append(query_id)
        deadline_ns = None if deadline_s is None else self.now_ns + deadline_s * S
        self.desk.submit(query_id, self.now_ns, priority, deadline_ns)

    @rule(seconds=st.integers(0, 2))
    def pass_time(self, seconds: int) -> None:
        self.now_ns += seconds * S

    @precondition(lambda self: self.running is None)
    @rule()
    def pop(self) -> None:
        self.running = self.desk.pop(self.now_ns)

    @precondition(lambda self: self.running is not None)
    @rule()
    def work(self) -> None:
        assert self.running is not None
        stop = self.desk.scheduler.should_stop(self.now_ns)
        self.desk.finish(self.running, stop or FinishReason.STOP)
        self.running = None

    @precondition(lambda self: self.submitted)
    @rule(pick=st.integers(0, 100))
    def cancel(self, pick: int) -> None:
        self.desk.scheduler.cancel(self.submitted[pick % len(self.submitted)], self.now_ns)

    @rule()
    def close(self) -> None:
        self.desk.scheduler.close(self.now_ns)
        self.is_closed = True

    @invariant()
    def every_query_is_answered_once_or_still_open(self) -> None:
        answered = [answer.query.query_id for answer in self.desk.answers]
        state = self.desk.scheduler.state()
        assert len(answered) == len(set(answered))
        assert len(answered) + state.num_waiting + state.is_running == len(self.submitted)
        assert sum(state.num_ended.values()) == len(answered)
        assert state.num_waiting <= (0 if self.is_closed else 3)


TestSchedulerMachine = SchedulerMachine.TestCase
