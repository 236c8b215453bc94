"""Standing queries in the line: they give way, wait again, are replaced, and get their turn all the same."""

from __future__ import annotations

import threading
from collections import Counter

from nvila_ros.serving.scheduler import MAX_PASSES, Ticket
from nvila_ros.types import FinishReason, Query
from tests.serving.scheduler_desk import Desk, S


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
    desk.scheduler.submit([Ticket(query=query, on_answer=desk.answers.append) for query in queries], 0)
    thread.join(5)

    assert taken == [list("abcdefgh")]


def test_newer_asking_stands_where_the_older_one_stood() -> None:
    desk = Desk()
    desk.submit("old", standing="watch")

    order = []
    for i in range(MAX_PASSES + 2):
        desk.submit(f"ask {i}")
        order += desk.pop()
        desk.submit(f"watch {i}", standing="watch")
        desk.finish(order[-1])

    assert order.index(f"watch {MAX_PASSES - 1}") == MAX_PASSES


def test_query_that_is_asked_anew_while_it_gives_way_does_not_give_way_again() -> None:
    desk = Desk()
    desk.submit("old", standing="watch")
    desk.pop()
    desk.submit("ask")
    desk.should_stop("old")
    desk.submit("new", standing="watch")
    desk.finish("old", FinishReason.CANCELED)
    assert desk.pop() == ["ask"]
    desk.finish("ask")
    assert desk.pop() == ["new"]
    desk.submit("ask again")

    assert desk.should_stop("new") is None


def test_query_that_is_due_more_often_than_it_can_be_answered_is_answered() -> None:
    """Its answer takes 1.5 s, it is due each second, and each second a question of 0.2 s comes as well."""
    desk, ends_ns = Desk(capacity=64), 0
    running: list[str] = []
    for now_s in range(60):
        desk.submit(f"watch {now_s}", now_s * S, standing="watch")
        desk.submit(f"ask {now_s}", now_s * S)
        for tenth in range(10):
            now_ns = now_s * S + tenth * S // 10
            if running and desk.should_stop(running[0], now_ns):
                desk.finish(running.pop(), FinishReason.CANCELED)
            elif running and now_ns >= ends_ns:
                desk.finish(running.pop())
            if not running:
                running = desk.pop(now_ns)
                ends_ns = now_ns + (15 if "watch" in "".join(running) else 2) * S // 10

    told = Counter(f"{query_id.split()[0]} {reason}" for query_id, reason in desk.told())
    assert told["ask STOP"] >= 30
    assert told["watch STOP"] >= 20
