from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from nvila_ros.errors import ConfigError
from nvila_ros.msg import Event as EventMessage
from nvila_ros.msg import StandingQuery as StandingQueryMessage
from nvila_ros.ros.standing_messages import event_message, query_from_message, query_message, state_message
from nvila_ros.standing.event import EndReason, Event, Phase
from nvila_ros.standing.query import StandingQuery
from nvila_ros.standing.registry import EvaluationCounts, StandingState
from nvila_ros.types import Answer, FinishReason, FrameRef, Query
from tests.standing.obvious import S

pytestmark = pytest.mark.ros

QUERIES = st.one_of(
    st.builds(
        StandingQuery,
        name=st.from_regex(r"[a-z0-9_]{1,64}", fullmatch=True),
        question=st.text(min_size=1).filter(str.strip),
        rate_hz=st.floats(0.1, 10),
        window_s=st.floats(0, 3600),
        num_frames=st.integers(0, 256),
        sampling=st.sampled_from(["uniform", "recent", "change"]),
        cameras=st.lists(st.sampled_from(["front", "rear"]), unique=True).map(tuple),
        trigger=st.sampled_from(["rising", "falling"]),
        target=st.sampled_from(["", "yes", "no"]),
        threshold=st.floats(0.5, 1),
        hysteresis=st.floats(0, 0.49),
        debounce_n=st.integers(1, 8),
        debounce_m=st.integers(8, 64),
        cooldown_s=st.floats(0, 100),
        stale_s=st.floats(30, 100),
        priority=st.integers(0, 255),
        deadline_s=st.floats(0, 10),
        enabled=st.booleans(),
    ),
    st.builds(
        StandingQuery,
        name=st.just("count"),
        question=st.just("How many?"),
        answer_type=st.just("integer"),
        minimum=st.integers(-(2**53), 0),
        maximum=st.integers(1, 2**53),
        max_tokens=st.integers(0, 8192),
    ),
    st.just(StandingQuery(name="light", question="?", answer_type="choices", choices=("red", "green"))),
    st.just(StandingQuery(name="scene", question="?", answer_type="json", json_schema='{"type": "object"}')),
)
QUERY = StandingQuery(name="door", question="Is it open?", trigger="rising")


def event(**changes: Any) -> Event:
    frames = tuple(FrameRef(stamp_ns=i * S + 5, camera="front", frame_id=f"optical{i}") for i in (3, 4))
    answer = Answer(
        query=Query(query_id="q000007", question=QUERY.question),
        finish_reason=FinishReason.STOP,
        text="yes",
        frames=frames,
        choices=("yes", "no"),
        probabilities=(0.75, 0.25),
    )
    values: dict[str, Any] = {
        "event_id": "e000001",
        "query": QUERY,
        "phase": Phase.BEGIN,
        "begin_stamp_ns": 2 * S + 1,
        "confirmed_stamp_ns": 4 * S + 5,
        "probability": 0.75,
        "num_agreed": 2,
        "num_counted": 3,
        "answer": answer,
    }
    return Event(**values | changes)


@given(QUERIES)
def test_query_comes_back_from_its_message_as_it_was(query: StandingQuery) -> None:
    assert query_from_message(query_message(query)) == query


def test_defaults_of_the_message_are_those_of_the_value() -> None:
    message = StandingQueryMessage(name="door", question="Is it open?")

    assert query_from_message(message) == StandingQuery(name="door", question="Is it open?")


def test_message_has_the_fields_of_the_value_in_their_order() -> None:
    assert list(StandingQueryMessage.get_fields_and_field_types()) == [
        field.name for field in dataclasses.fields(StandingQuery)
    ]


def test_message_that_breaks_a_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="trigger must be one of"):
        query_from_message(StandingQueryMessage(name="door", question="?", trigger="up"))


def test_constants_of_the_event_are_those_of_the_values() -> None:
    text = Path(__file__).parents[2].joinpath("msg", "Event.msg").read_text()

    constants = {name: int(value) for name, value in re.findall(r"^uint8 (\w+)=(\d+)", text, re.M)}

    assert constants == {member.name: member.value for kind in (Phase, EndReason) for member in kind}


def test_begin_carries_stamps_and_probabilities() -> None:
    message = event_message(event())

    assert (message.event_id, message.name, message.trigger, message.phase) == (
        "e000001",
        "door",
        "rising",
        EventMessage.BEGIN,
    )
    assert (message.header.stamp.sec, message.header.stamp.nanosec, message.header.frame_id) == (4, 5, "optical4")
    assert (message.begin_stamp.sec, message.begin_stamp.nanosec) == (2, 1)
    assert message.confirmed_stamp == message.header.stamp
    assert message.end_stamp.sec == 0
    assert [stamp.sec for stamp in message.stamps] == [3, 4]
    assert list(message.cameras) == ["front", "front"]
    assert (list(message.choices), list(message.probabilities)) == (["yes", "no"], [0.75, 0.25])
    assert (message.num_agreed, message.num_counted, message.query_id) == (2, 3, "q000007")


def test_end_carries_its_reason() -> None:
    message = event_message(event(phase=Phase.END, end_reason=EndReason.STALE, end_stamp_ns=9 * S))

    assert (message.phase, message.end_reason, message.end_stamp.sec) == (EventMessage.END, EventMessage.STALE, 9)


def test_state_tells_counts_and_what_is_known() -> None:
    counts = EvaluationCounts(asked=6, answered=3, missed=2, repeated=1, skipped=4, events=5)

    last = {"last_reason": FinishReason.DEADLINE, "last_error": "too late"}
    message = state_message(
        StandingState(query=QUERY, counts=counts, answer=event().answer, open_event=event(), **last)  # type: ignore[arg-type]
    )

    assert [getattr(message, field.name) for field in dataclasses.fields(EvaluationCounts)] == [6, 3, 2, 1, 4, 5]
    assert (message.open_event_id, message.text, message.text_stamp.sec) == ("e000001", "yes", 4)
    assert (message.finish_reason, message.error) == (FinishReason.DEADLINE, "too late")
    assert query_from_message(message.query) == QUERY


def test_state_of_which_nothing_is_known_is_empty() -> None:
    message = state_message(StandingState(query=QUERY, counts=EvaluationCounts(), answer=None, open_event=None))

    assert (message.open_event_id, message.text, message.text_stamp.sec) == ("", "", 0)
