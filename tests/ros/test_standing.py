from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from nvila_ros.msg import Answer, Event
from nvila_ros.srv import EnableQuery
from tests.ros.guard import LAMP_NODE, Guard
from tests.ros.robot import result_of, running

FROM_FILE = """
- {name: from/file, question: Is the lamp on, rate_hz: 10, trigger: on_change}
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    path = tmp_path_factory.mktemp("standing") / "standing.yaml"
    path.write_text(FROM_FILE)
    arguments = ("-p", f"standing_queries:={path}", "-p", "max_standing:=3", "-p", "buffer_s:=3600.0")
    with running(*arguments, command=LAMP_NODE) as (robot, camera):
        yield Guard(robot, camera)


@pytest.fixture
def guard(shared: Guard) -> Guard:
    """The shared guard without the queries of other tests, before a lamp that is off."""
    for name in set(shared.states()) - {"from/file"}:
        assert shared.remove(name).success
    shared.show(False)
    shared.events.clear()
    return shared


def test_event_begins_and_ends_with_the_lamp(guard: Guard) -> None:
    assert guard.add().success
    guard.show(False)
    on_s = guard.show(True)
    (begin,) = guard.wait_for(1)
    assert guard.states()["lamp"].open_event_id == begin.event_id
    off_s = guard.show(False)

    _, end = guard.wait_for(2)

    assert (begin.phase, begin.begin_stamp.sec, begin.confirmed_stamp.sec) == (Event.BEGIN, on_s, on_s)
    assert (begin.header.stamp.sec, begin.header.frame_id, begin.text) == (on_s, "optical", "yes")
    assert (end.phase, end.end_reason, end.event_id) == (Event.END, Event.OVER, begin.event_id)
    assert (end.begin_stamp.sec, end.end_stamp.sec, end.text) == (on_s, off_s, "no")
    assert guard.states()["lamp"].open_event_id == ""


def test_answers_of_standing_queries_are_told_like_all_others(guard: Guard) -> None:
    guard.robot.answers.clear()

    guard.show(True)

    answers = [answer for answer in list(guard.robot.answers) if answer.finish_reason == Answer.STOP]
    assert {answer.question for answer in answers} == {"Is the lamp on"}
    assert len({answer.query_id for answer in answers}) == len(answers)


def test_queries_of_the_file_stand_from_the_start(guard: Guard) -> None:
    on_s = guard.show(True)
    guard.show(False)

    first, second = guard.wait_for(2, "from/file")

    assert (first.phase, first.text, first.previous, first.confirmed_stamp.sec) == (Event.INSTANT, "yes", "no", on_s)
    assert (second.text, second.previous) == ("no", "yes")
    assert guard.told() == []


def test_debounce_confirms_late_and_counts_frames_once(guard: Guard) -> None:
    guard.add(debounce_n=2, debounce_m=3)
    first_s = guard.show(True)
    assert guard.told() == []
    guard.show(False)
    third_s = guard.show(True)

    (begin,) = guard.wait_for(1)

    assert (begin.begin_stamp.sec, begin.confirmed_stamp.sec) == (first_s, third_s)
    assert (begin.num_agreed, begin.num_counted) == (2, 3)


def test_what_was_filled_in_and_counted_is_listed(guard: Guard) -> None:
    added = guard.add()
    guard.show(True)

    state = guard.states()["lamp"]

    assert added.query == state.query
    assert (state.query.num_frames, state.query.window_s, list(state.query.cameras)) == (1, 2.0, ["camera"])
    assert state.answered >= 1
    assert state.asked >= state.answered + state.missed + state.repeated
    assert state.events == 1
    assert int(guard.robot.fresh_diagnostics()["standing_queries"]) == 2


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"name": "from/file"}, "stands already"),
        ({"trigger": "up"}, "trigger must be one of"),
        ({"cameras": ["left"]}, "unknown cameras"),
        ({"rate_hz": 0.0}, "rate_hz must lie in"),
        ({"answer_type": "json", "trigger": "every", "json_schema": '{"not": {}}'}, "answers can be held to, but"),
    ],
)
def test_query_that_breaks_a_rule_is_refused(guard: Guard, fields: dict[str, Any], rule: str) -> None:
    response = guard.add(**fields)

    assert not response.success
    assert rule in response.error
    assert list(guard.states()) == ["from/file"]


def test_no_more_queries_stand_than_the_parameter_allows(guard: Guard) -> None:
    assert [guard.add(name).success for name in ("a", "b", "c")] == [True, True, False]


def test_name_that_does_not_stand_is_refused_with_near_ones(guard: Guard) -> None:
    removed = guard.remove("from/fil")
    enabled = guard.call("enable", EnableQuery.Request(name="nobody", enabled=True))

    assert (removed.success, enabled.success) == (False, False)
    assert "['from/file']" in removed.error


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        (lambda guard: guard.remove(), Event.REMOVED),
        (lambda guard: guard.add(replace=True), Event.REMOVED),
        (lambda guard: guard.call("enable", EnableQuery.Request(name="lamp", enabled=False)), Event.DISABLED),
    ],
    ids=["remove", "replace", "disable"],
)
def test_open_event_ends_with_its_query(guard: Guard, act: Any, reason: int) -> None:
    guard.add()
    guard.show(True)
    (begin,) = guard.wait_for(1)

    assert act(guard).success

    end = guard.wait_for(2)[1]
    assert (end.phase, end.end_reason, end.event_id) == (Event.END, reason, begin.event_id)


def test_disabled_query_is_not_asked_until_it_is_enabled(guard: Guard) -> None:
    guard.add(enabled=False)
    guard.show(True)
    assert guard.states()["lamp"].asked == 0

    guard.call("enable", EnableQuery.Request(name="lamp", enabled=True))

    assert [event.phase for event in guard.wait_for(1)] == [Event.BEGIN]


def test_open_event_ends_stale_when_no_frame_comes_any_more(guard: Guard) -> None:
    guard.add(stale_s=2.0)
    guard.show(True)

    end = guard.wait_for(2)[1]

    assert (end.phase, end.end_reason) == (Event.END, Event.STALE)


def test_camera_that_starts_again_ends_the_event_and_begins_another(guard: Guard) -> None:
    guard.add()
    guard.show(True)
    (begin,) = guard.wait_for(1)

    again_s = guard.show(True, seconds_later=-50)

    _, end, other = guard.wait_for(3)
    assert (end.end_reason, end.event_id) == (Event.TIME_JUMP, begin.event_id)
    assert (other.phase, other.begin_stamp.sec) == (Event.BEGIN, again_s)
    assert other.event_id != begin.event_id


def test_request_that_was_overtaken_while_its_schema_was_tried_is_told_so(guard: Guard) -> None:
    first = guard.add_later("twice", answer_type="json", trigger="every", json_schema='{"type": "boolean"}')

    second = guard.add("twice")

    assert second.success
    assert not first.done(), "a schema is tried in a process of its own, which takes longer to start"
    assert "was added anew or removed while its schema was tried" in result_of(first).error
    assert guard.states()["twice"].query.answer_type == "yes_no"
