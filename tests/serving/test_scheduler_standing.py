"""Standing queries in the line: they give way, wait again, are replaced, and get their turn all the same."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from nvila_ros.request import Request
from nvila_ros.serving.scheduler import MAX_PASSES
from nvila_ros.types import FinishReason, Query
from tests.serving.scheduler_harness import S, SchedulerHarness


def test_standing_queries_about_one_clip_are_taken_together() -> None:
    harness = SchedulerHarness()
    for query_id, frames, priority in (("a", 8, 0), ("b", 8, 0), ("c", 4, 0), ("d", 8, 1)):
        harness.submit(query_id, standing=query_id, num_frames=frames, priority=priority)

    groups = []
    for _ in range(3):
        groups.append(harness.pop())
        for query_id in groups[-1]:
            harness.finish(query_id)

    assert groups == [["d"], ["a", "b"], ["c"]]


def test_interactive_query_goes_before_standing_ones_of_its_priority() -> None:
    harness = SchedulerHarness()
    harness.submit("watch", standing="watch")
    harness.submit("urgent watch", standing="urgent watch", priority=1)
    harness.submit("ask")

    order = []
    for _ in range(3):
        (query_id,) = harness.pop()
        order.append(query_id)
        harness.finish(query_id)

    assert order == ["urgent watch", "ask", "watch"]


def test_standing_query_gives_way_once_and_keeps_its_place() -> None:
    harness = SchedulerHarness()
    harness.submit("watch", standing="watch")
    harness.pop()
    assert harness.should_stop("watch") is None
    harness.submit("ask")

    assert harness.should_stop("watch") is FinishReason.CANCELED
    harness.finish("watch", FinishReason.CANCELED)
    assert harness.pop() == ["ask"]
    harness.finish("ask")
    assert harness.pop() == ["watch"]
    harness.submit("ask again")

    assert harness.should_stop("watch") is None
    assert harness.ended() == [("ask", "STOP")]
    assert harness.scheduler.state().num_preempted == 1


def test_each_preemption_is_counted_and_none_leaves_a_trace_once_the_query_runs_again() -> None:
    harness = SchedulerHarness()
    for name in ("one", "two"):
        harness.submit(name, standing=name)
    harness.pop()
    harness.submit("ask")
    for name in ("one", "two"):
        assert harness.should_stop(name) is FinishReason.CANCELED
        harness.finish(name, FinishReason.CANCELED)
    assert harness.scheduler.state().num_preempted == 2
    assert harness.pop() == ["ask"]
    harness.finish("ask")
    assert harness.pop() == ["one", "two"]

    harness.finish("one", FinishReason.CANCELED)  # by itself: nobody asked it to
    harness.finish("two")

    assert harness.ended() == [("ask", "STOP"), ("one", "CANCELED"), ("two", "STOP")]
    assert harness.pop() == []


def test_standing_query_of_higher_priority_gives_no_way() -> None:
    harness = SchedulerHarness()
    harness.submit("watch", standing="watch", priority=1)
    harness.pop()
    harness.submit("ask")

    assert harness.should_stop("watch") is None


def test_newer_asking_replaces_the_one_that_waits() -> None:
    harness = SchedulerHarness()
    harness.submit("old", standing="watch")

    harness.submit("new", standing="watch")

    assert harness.ended() == [("old", "REPLACED")]
    assert harness.pop() == ["new"]


def test_newer_asking_replaces_the_one_that_gave_way() -> None:
    harness = SchedulerHarness()
    harness.submit("old", standing="watch")
    harness.pop()
    harness.submit("ask")
    harness.should_stop("old")
    harness.submit("new", standing="watch")

    harness.finish("old", FinishReason.CANCELED)

    assert harness.ended() == [("old", "REPLACED")]
    assert harness.answers[0].error == "'watch' was asked anew while it was preempted"


def test_cancel_of_one_that_is_to_give_way_is_final() -> None:
    harness = SchedulerHarness()
    harness.submit("old", standing="watch")
    harness.pop()
    harness.submit("ask")
    harness.should_stop("old")
    assert harness.scheduler.cancel_standing("watch", 0)

    harness.finish("old", FinishReason.CANCELED)

    assert harness.ended() == [("old", "CANCELED")]
    assert harness.pop() == ["ask"]


def test_standing_query_is_not_passed_over_for_ever() -> None:
    harness = SchedulerHarness()
    harness.submit("watch", standing="watch")

    order = []
    for i in range(MAX_PASSES + 2):
        harness.submit(f"ask {i}")
        order += harness.pop()
        assert harness.should_stop(order[-1]) is None
        harness.finish(order[-1])

    assert order.index("watch") == MAX_PASSES


def asks_before_watch(harness: SchedulerHarness) -> int:
    """Let one more query come each time that one is taken; return how many are taken before the standing one."""
    for num_asks in range(9 * MAX_PASSES):
        harness.submit(f"new {num_asks}")
        (query_id,) = harness.pop()
        harness.finish(query_id)
        if query_id == "watch":
            return num_asks
    raise AssertionError("the standing query was never taken")


@pytest.mark.parametrize("priority", [0, 1])
def test_query_is_not_passed_over_by_those_that_came_before_it_or_are_of_higher_priority(priority: int) -> None:
    harness = SchedulerHarness(capacity=64)
    if priority:
        harness.submit("watch", standing="watch")
    for i in range(MAX_PASSES):
        harness.submit(f"old {i}", priority=priority)
    if not priority:
        harness.submit("watch", standing="watch")
    for i in range(MAX_PASSES):
        assert harness.pop() == [f"old {i}"]
        harness.finish(f"old {i}")

    assert asks_before_watch(harness) == MAX_PASSES


def test_query_that_was_preempted_is_passed_over_no_less_often() -> None:
    harness = SchedulerHarness()
    harness.submit("watch", standing="watch")
    harness.pop()
    harness.submit("ask")
    harness.should_stop("watch")
    harness.finish("watch", FinishReason.CANCELED)

    assert asks_before_watch(harness) == MAX_PASSES


def test_standing_query_waits_also_where_no_more_interactive_ones_may() -> None:
    harness = SchedulerHarness(capacity=1)
    harness.submit("ask")

    assert harness.submit("watch", standing="watch")


def test_standing_queries_take_no_place_of_interactive_ones() -> None:
    harness = SchedulerHarness(capacity=1)
    for name in "abc":
        assert harness.submit(name, standing=name)

    assert harness.submit("ask")
    assert not harness.submit("one too many")


def test_queries_that_come_together_are_taken_together_by_a_worker_that_waits() -> None:
    harness = SchedulerHarness()
    taken: list[list[str]] = []

    def work() -> None:
        harness.scheduler.wait()
        taken.append(harness.pop())

    thread = threading.Thread(target=work)
    thread.start()
    queries = [Query(query_id=name, question="?", standing=name) for name in "abcdefgh"]
    harness.scheduler.submit([Request(query, harness.answers.append) for query in queries], 0)
    thread.join(5)

    assert taken == [list("abcdefgh")]


def test_newer_asking_stands_where_the_older_one_stood() -> None:
    harness = SchedulerHarness()
    harness.submit("old", standing="watch")

    order = []
    for i in range(MAX_PASSES + 2):
        harness.submit(f"ask {i}")
        order += harness.pop()
        harness.submit(f"watch {i}", standing="watch")
        harness.finish(order[-1])

    assert order.index(f"watch {MAX_PASSES - 1}") == MAX_PASSES


def test_query_that_is_asked_anew_while_it_gives_way_does_not_give_way_again() -> None:
    harness = SchedulerHarness()
    harness.submit("old", standing="watch")
    harness.pop()
    harness.submit("ask")
    harness.should_stop("old")
    harness.submit("new", standing="watch")
    harness.finish("old", FinishReason.CANCELED)
    assert harness.pop() == ["ask"]
    harness.finish("ask")
    assert harness.pop() == ["new"]
    harness.submit("ask again")

    assert harness.should_stop("new") is None


def test_query_that_is_due_more_often_than_it_can_be_answered_is_answered() -> None:
    """Its answer takes 1.5 s, it is due each second, and each second a question of 0.2 s comes as well."""
    harness, ends_ns = SchedulerHarness(capacity=64), 0
    running: list[str] = []
    for now_s in range(60):
        harness.submit(f"watch {now_s}", now_s * S, standing="watch")
        harness.submit(f"ask {now_s}", now_s * S)
        for tenth in range(10):
            now_ns = now_s * S + tenth * S // 10
            if running and harness.should_stop(running[0], now_ns):
                harness.finish(running.pop(), FinishReason.CANCELED)
            elif running and now_ns >= ends_ns:
                harness.finish(running.pop())
            if not running:
                running = harness.pop(now_ns)
                ends_ns = now_ns + (15 if "watch" in "".join(running) else 2) * S // 10

    told = Counter(f"{query_id.split()[0]} {reason}" for query_id, reason in harness.ended())
    assert told["ask STOP"] >= 30
    assert told["watch STOP"] >= 20
