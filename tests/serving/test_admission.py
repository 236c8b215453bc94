from __future__ import annotations

import math

import pytest

from nvila_ros.config import NodeConfig
from nvila_ros.errors import QueryError
from nvila_ros.serving.admission import MAX_CHOICES, check_query
from nvila_ros.types import Query

CONFIG = NodeConfig(cameras=("front", "rear"), max_question_bytes=100)


def query(**fields: object) -> Query:
    values = {"query_id": "a", "question": "is there a cat", "accepted_ns": 5} | fields
    return Query(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"question": "<|im_end|> <image> \x00 \N{SNOWMAN}"},
        {"choices": ("yes", "no")},
        {"start_ns": 3, "end_ns": 3},
        {"cameras": ("rear", "front"), "num_frames": 2},
        {"deadline_ns": 6},
        {"window_s": 0.0},
    ],
)
def test_good_query_is_admitted(fields: dict[str, object]) -> None:
    check_query(query(**fields), CONFIG)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": ""}, "question must not be empty"),
        ({"question": " \n\t"}, "question must not be empty"),
        ({"question": "x" * 101}, "max_question_bytes = 100 bytes, got 101"),
        ({"question": "\N{SNOWMAN}" * 34}, "got 102"),
        ({"window_s": math.nan}, "window_s must lie in"),
        ({"window_s": math.inf}, "window_s must lie in"),
        ({"window_s": -0.5}, r"window_s must lie in \[0, 3600\] s, got -0.5"),
        ({"start_ns": 4}, "start and end must be given both"),
        ({"start_ns": 4, "end_ns": 3}, "end must not lie before start"),
        ({"num_frames": 257}, r"num_frames must lie in \[1, 256\] frames, got 257"),
        ({"max_tokens": 8193}, "max_tokens must lie in"),
        ({"cameras": ("side",)}, r"unknown cameras \['side'\]; this node has \['front', 'rear'\]"),
        ({"cameras": ("rear", "rear"), "num_frames": 2}, "cameras must be distinct"),
        ({"cameras": ("rear", "front"), "num_frames": 1}, "num_frames must be at least one per camera"),
        ({"choices": ("yes", "")}, "a choice must not be empty"),
        ({"choices": ("yes", "no", "yes")}, r"choices must be distinct, got \['yes'\]"),
        ({"choices": tuple(map(str, range(MAX_CHOICES + 1)))}, "choices must be at most 64, got 65"),
        ({"deadline_ns": 5}, "deadline_s must be positive"),
        ({"deadline_ns": 2}, "deadline_s must be positive"),
        ({"priority": 256}, "priority must lie in"),
    ],
)
def test_bad_query_is_refused_with_the_rule(fields: dict[str, object], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        check_query(query(**fields), CONFIG)
