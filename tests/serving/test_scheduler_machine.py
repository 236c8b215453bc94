"""Any order of what can happen to a scheduler, by one thread and by several."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nvila_ros.request import Request
from nvila_ros.serving.scheduler import MAX_PASSES, Scheduler
from nvila_ros.types import Answer, FinishReason, Query
from tests.serving.scheduler_harness import S, SchedulerHarness


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
