"""Records may name frames of a ROS 2 bag: they are read where tags stand, and refused where they are told badly."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import NoFramesError
from nvila_ros.training.conversations.bad_samples import SampleError
from nvila_ros.training.conversations.bags import BagMedium
from nvila_ros.training.conversations.record_media import IMAGE, VIDEO, read_medium
from nvila_ros.training.conversations.samples import Sample, parse_record
from nvila_ros.video.bags import Index

SECONDS = st.floats(0, allow_infinity=False)
QUESTION = {"question": "What?", "answer": "a"}


def parse(**fields: Any) -> Sample:
    return parse_record(QUESTION | fields, "set.jsonl, record 1", Path("/media"), "set")


@pytest.mark.parametrize(
    ("fields", "kind", "medium"),
    [
        ({}, VIDEO, BagMedium(Path("/media/a.mcap"))),
        ({"topic": "/c"}, VIDEO, BagMedium(Path("/media/a.mcap"), "/c")),
        ({"start_s": 1, "end_s": 2.5}, VIDEO, BagMedium(Path("/media/a.mcap"), start_s=1.0, end_s=2.5)),
        ({"end_s": 0}, VIDEO, BagMedium(Path("/media/a.mcap"), end_s=0.0)),
        ({"num_frames": 4}, VIDEO, BagMedium(Path("/media/a.mcap"), num_frames=4)),
        ({"num_frames": 1}, IMAGE, BagMedium(Path("/media/a.mcap"), num_frames=1)),
        ({"time_s": 0.5}, IMAGE, BagMedium(Path("/media/a.mcap"), time_s=0.5)),
        ({"stamps_ns": [7]}, IMAGE, BagMedium(Path("/media/a.mcap"), stamps_ns=(7,))),
        ({"stamps_ns": [7, 9]}, VIDEO, BagMedium(Path("/media/a.mcap"), stamps_ns=(7, 9))),
    ],
)
def test_fields_say_which_frames(fields: dict[str, Any], kind: str, medium: BagMedium) -> None:
    sample = parse(bag="a.mcap", **fields)

    assert medium.kind == kind
    assert sample.turns[0].parts == (medium, "What?")
    assert sample.turns[0].answer == "a"


def test_tag_of_a_bag_is_that_of_what_it_shows() -> None:
    said = [{"from": "human", "value": "What?\n<video>"}, {"from": "gpt", "value": "a"}]

    sample = parse_record({"bag": "a.mcap", "conversations": said}, "r", Path("/media"), "set")

    assert sample.turns[0].parts == (BagMedium(Path("/media/a.mcap")), "What?")


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"bag": 3}, "bag must be a path and topic a name, got 3"),
        ({"bag": "a.mcap", "topic": ["/c"]}, "bag must be a path and topic a name"),
        ({"bag": "a.mcap", "start_s": -1}, "start_s must be seconds >= 0, got -1"),
        ({"bag": "a.mcap", "end_s": float("nan")}, "end_s must be seconds >= 0, got nan"),
        ({"bag": "a.mcap", "time_s": "1"}, "time_s must be seconds >= 0, got '1'"),
        ({"bag": "a.mcap", "start_s": 2, "end_s": 1}, "end_s must not lie before start_s, got 1 and 2"),
        ({"bag": "a.mcap", "start_s": 2, "time_s": 1}, "selected in one way, got time_s, start_s and end_s"),
        ({"bag": "a.mcap", "stamps_ns": []}, "stamps_ns must list whole nanoseconds"),
        ({"bag": "a.mcap", "stamps_ns": [1.5]}, "stamps_ns must list whole nanoseconds"),
        ({"bag": "a.mcap", "stamps_ns": [2**63]}, "stamps_ns must list whole nanoseconds of 64 bits"),
        ({"bag": "a.mcap", "start_s": 10**400}, "start_s must be seconds >= 0, got 1000"),
        ({"bag": "a.mcap", "stamps_ns": [2, 2]}, "stamps_ns must ascend"),
        ({"bag": "a.mcap", "num_frames": 0}, "num_frames must be a whole number >= 1, got 0"),
        ({"video": "a.mp4", "start_s": 1}, "start_s goes with a bag"),
    ],
)
def test_field_that_breaks_its_rule_is_refused(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(SampleError, match=rule) as caught:
        parse(**fields)

    assert caught.value.reason == "malformed"


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        ({"question": "What?", "answer": "a"}, "a"),
        ({"question": "What?", "answers": ["b", "c"]}, "b"),
        ({"question": "What?", "answer": ["c", "b"]}, "c"),
    ],
)
def test_question_and_answer_are_short_for_one_turn(record: dict[str, Any], answer: str) -> None:
    sample = parse_record(record, "r", Path("/media"), "set")

    assert [(turn.parts, turn.answer) for turn in sample.turns] == [(("What?",), answer)]


@pytest.mark.parametrize("record", [{"question": "What?"}, {"answer": "a"}, {"question": 3, "answer": "a"}, {}, []])
def test_record_without_both_is_malformed(record: Any) -> None:
    with pytest.raises(SampleError, match="with a question and an answer"):
        parse_record(record, "r", Path("/media"), "set")


def test_frames_are_read_as_the_node_samples_them(tmp_path: Path) -> None:
    pytest.importorskip("rosbags", reason="reads bags; comes with nvila_ros[bags]")
    from tests.video.bag_files import T0_NS, film, write_mcap

    path = write_mcap(tmp_path / "a", film(num_frames=10, period_s=0.5))

    def shown(most: int = 8, **fields: Any) -> list[int]:
        return [int(image[0, 0, 0]) for image in BagMedium(path, **fields).read(most)]

    assert shown() == [0, 10, 30, 40, 50, 60, 80, 90]
    assert shown(4) == [0, 30, 60, 90]
    assert shown(4, num_frames=99) == [0, 30, 60, 90]
    assert shown(4, num_frames=2) == [0, 90]
    assert shown(start_s=1, end_s=2) == [20, 30, 40]
    assert shown(time_s=2.1) == [40]
    assert shown(stamps_ns=(T0_NS, T0_NS + 1_500_000_000)) == [0, 30]


@given(start_s=SECONDS, end_s=SECONDS, time_s=SECONDS)
def test_window_of_any_length_is_read_or_has_no_frame(start_s: float, end_s: float, time_s: float) -> None:
    index = Index(np.array([10, 20, 30], np.int64), np.array([10, 20, 30], np.int64))

    for end in (end_s, None):
        with contextlib.suppress(NoFramesError):
            assert set(index.between(start_s, end, 8)) <= {0, 1, 2}
    with contextlib.suppress(NoFramesError):
        assert index.nearest(time_s) in {0, 1, 2}
    assert index.between(0.0, end_s + 1.0, 8) == [0, 1, 2]


def test_bad_bag_makes_a_bad_sample(tmp_path: Path) -> None:
    pytest.importorskip("rosbags", reason="reads bags; comes with nvila_ros[bags]")
    from tests.video.bag_files import film, write_mcap

    path = write_mcap(tmp_path / "a", film())

    def reason(medium: BagMedium) -> str:
        with pytest.raises(SampleError, match=r"^r: ") as caught:
            read_medium(medium, 8, "r")
        return caught.value.reason

    assert reason(BagMedium(tmp_path / "none.mcap")) == "missing_media"
    assert reason(BagMedium(path, "/rear")) == "unreadable_media"
    assert reason(BagMedium(path, start_s=99)) == "unreadable_media"
    path.write_bytes(path.read_bytes()[:5000])
    assert reason(BagMedium(path)) == "unreadable_media"
