from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvila_ros.scheduler import MAX_PASSES, SHUTTING_DOWN, Scheduler, Ticket
from nvila_ros.types import Answer, FinishReason, Query, Timings

S = 1_000_000_000


class Desk:
    """A scheduler, and the answers that came out of it."""

    def __init__(self, capacity: int = 3) -> None:
        self.scheduler = Scheduler(capacity)
        self.answers: list[Answer] = []

    def submit(self, query_id: str, now_ns: int = 0, **fields: Any) -> bool:
        query = Query(query_id=query_id, question="?", accepted_ns=now_ns, **fields)
        return self.scheduler.submit(Ticket(query=query, on_answer=self.answers.append), now_ns)

    def pop(self, now_ns: int = 0) -> list[str]:
        return [ticket.query.query_id for ticket in self.scheduler.pop(now_ns)]

    def should_stop(self, query_id: str, now_ns: int = 0) -> FinishReason | None:
        return self.scheduler.should_stop(query_id, now_ns)

    def finish(self, query_id: str, reason: FinishReason = FinishReason.STOP, work_s: float = 0.0) -> None:
        query = Query(query_id=query_id, question="?")
        answer = Answer(query=query, finish_reason=reason, timings=Timings(total_s=work_s))
        self.scheduler.finish(answer, 0)

    def told(self) -> list[tuple[str, str]]:
        return [(answer.query.query_id, answer.finish_reason.name) for answer in self.answers]


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
    thread.join(5)
    assert waits == [True]

    desk.scheduler.close(0)
    assert not desk.scheduler.wait()


def test_standing_queries_about_one_clip_are_taken_together() -> None:
    desk = Desk()
    for query_id, frames, priority in (("a", 8, 0), ("b", 8, 0), ("c", 4, 0), ("d", 8, 1)):
        desk.submit(query_id, standing=query_id, num_frames=frames, priority=priority)

    groups = []
    for _ in range(3):
        groups.append(desk.pop())
        for query_id in groups[-1]:
            desk.finish(query_id)

    assert groups == [["d"], ["a", "b"], ["c"]]


def test_interactive_query_goes_before_standing_ones_of_its_priority() -> None:
    desk = Desk()
    desk.submit("watch", standing="watch")
    desk.submit("urgent watch", standing="urgent watch", priority=1)
    desk.submit("ask")

    order = []
    for _ in range(3):
        (query_id,) = desk.pop()
        order.append(query_id)
        desk.finish(query_id)

    assert order == ["urgent watch", "ask", "watch"]


def test_standing_query_gives_way_once_and_keeps_its_place() -> None:
    desk = Desk()
    desk.submit("watch", standing="watch")
    desk.pop()
    assert desk.should_stop("watch") is None
    desk.submit("ask")

    assert desk.should_stop("watch") is FinishReason.CANCELED
    desk.finish("watch", FinishReason.CANCELED)
    assert desk.pop() == ["ask"]
    desk.finish("ask")
    assert desk.pop() == ["watch"]
    desk.submit("ask again")

    assert desk.should_stop("watch") is None
    assert desk.told() == [("ask", "STOP")]
    assert desk.scheduler.state().num_preempted == 1


def test_standing_query_of_higher_priority_gives_no_way() -> None:
    desk = Desk()
    desk.submit("watch", standing="watch", priority=1)
    desk.pop()
    desk.submit("ask")

    assert desk.should_stop("watch") is None


def test_newer_asking_replaces_the_one_that_waits() -> None:
    desk = Desk()
    desk.submit("old", standing="watch")

    desk.submit("new", standing="watch")

    assert desk.told() == [("old", "REPLACED")]
    assert desk.pop() == ["new"]


def test_newer_asking_replaces_the_one_that_gave_way() -> None:
    desk = Desk()
    desk.submit("old", standing="watch")
    desk.pop()
    desk.submit("ask")
    desk.should_stop("old")
    desk.submit("new", standing="watch")

    desk.finish("old", FinishReason.CANCELED)

    assert desk.told() == [("old", "REPLACED")]


def test_cancel_of_one_that_is_to_give_way_is_final() -> None:
    desk = Desk()
    desk.submit("old", standing="watch")
    desk.pop()
    desk.submit("ask")
    desk.should_stop("old")
    assert desk.scheduler.cancel_standing("watch", 0)

    desk.finish("old", FinishReason.CANCELED)

    assert desk.told() == [("old", "CANCELED")]
    assert desk.pop() == ["ask"]


def test_standing_query_is_not_passed_over_for_ever() -> None:
    desk = Desk()
    desk.submit("watch", standing="watch")

    order = []
    for i in range(MAX_PASSES + 2):
        desk.submit(f"ask {i}")
        order += desk.pop()
        assert desk.should_stop(order[-1]) is None
        desk.finish(order[-1])

    assert order.index("watch") == MAX_PASSES


def test_standing_queries_take_no_place_of_interactive_ones() -> None:
    desk = Desk(capacity=1)
    for name in "abc":
        assert desk.submit(name, standing=name)

    assert desk.submit("ask")
    assert not desk.submit("one too many")


def test_queries_that_come_together_are_taken_together_by_a_worker_that_waits() -> None:
    desk = Desk()
    taken: list[list[str]] = []

    def work() -> None:
        desk.scheduler.wait()
        taken.append(desk.pop())

    thread = threading.Thread(target=work)
    thread.start()
    queries = [Query(query_id=name, question="?", standing=name) for name in "abcdefgh"]
    assert desk.scheduler.submit_all([Ticket(query=query, on_answer=desk.answers.append) for query in queries], 0) == 8
    thread.join(5)

    assert taken == [list("abcdefgh")]


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


def test_asker_that_cannot_be_told_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()

    def fail(answer: Answer) -> None:
        raise RuntimeError("the asker is gone")

    desk.scheduler.submit(Ticket(query=Query(query_id="gone", question="?"), on_answer=fail), 0)
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
        self.overtaken: Counter[str] = Counter()
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
            if int(query_id) < min(map(int, self.running)) and self.submitted[query_id].priority == group[0].priority:
                self.overtaken[query_id] += 1
                assert self.overtaken[query_id] <= MAX_PASSES

    @precondition(lambda self: self.running)
    @rule(pick=st.integers(0, 9), work_s=st.floats(0, 4))
    def work(self, pick: int, work_s: float) -> None:
        query_id = self.running.pop(pick % len(self.running))
        stop = self.desk.should_stop(query_id, self.now_ns)
        self.desk.finish(query_id, stop or FinishReason.STOP, work_s)

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

    def waiting_best(self) -> int:
        return max((self.submitted[query_id].priority for query_id in self.waiting()), default=-1)


TestSchedulerMachine = SchedulerMachine.TestCase
