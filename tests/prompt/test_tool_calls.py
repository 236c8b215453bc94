"""Calls of tools are a closed list; what a model is held to is one of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import QueryError
from nvila_ros.prompt.answer_kinds import MAX_SCORED, Scored, parse_kind
from nvila_ros.prompt.tool_calls import list_calls
from nvila_ros.serving.pipeline import load_model
from nvila_ros.types import Frame, Query

arguments = st.text("abc xyz,;-", max_size=6).map(str.strip)


def test_tools_of_vila_m3_become_its_calls() -> None:
    tools = ["VISTA3D(everything|hepatic tumor)", "BRATS(args)", "CXR()", "none"]

    calls = list_calls(tools)

    assert calls == ("<VISTA3D(everything)>", "<VISTA3D(hepatic tumor)>", "<BRATS(args)>", "<CXR()>", "none")
    kind = parse_kind("tool", tools)
    assert isinstance(kind, Scored)
    assert kind.names == kind.spellings == calls


@given(st.lists(arguments, min_size=1, max_size=8, unique=True))
def test_each_argument_is_a_call(words: list[str]) -> None:
    assert list_calls([f"detect({'|'.join(words)})"]) == tuple(f"<detect({word})>" for word in words)


@pytest.mark.parametrize(
    ("tools", "rule"),
    [
        ([], "answer_type 'tool' needs choices"),
        (["none"], "2 to 64 calls in all, got 1"),
        (["detect"], r"NAME\(argument\).*got 'detect'"),
        (["<detect(a)>"], "NAME"),
        (["detect(a) and more"], "NAME"),
        (["detect((a))"], "NAME"),
        (["detect(a| b)"], "blanks around an argument"),
        (["3d(a)"], "NAME"),
        (["detect(a|b)", "detect(b)"], r"distinct, got \['<detect\(b\)>'\]"),
        ([f"f({'|'.join(map(str, range(MAX_SCORED + 1)))})"], "2 to 64 calls in all, got 65"),
    ],
)
def test_what_is_no_closed_list_is_refused_by_name(tools: list[str], rule: str) -> None:
    with pytest.raises(QueryError, match=rule):
        parse_kind("tool", tools)


@pytest.mark.slow
def test_model_is_held_to_the_calls_with_their_probabilities() -> None:
    model = load_model("nvila-tiny", threads=1)
    frame = Frame(image=np.zeros((48, 64, 3), np.uint8), stamp_ns=1)
    tools = ("detect(person|box)", "read()", "none")

    answer = model.answer(Query(query_id="q", question="Which tool?", answer_type="tool", choices=tools), [frame])

    assert answer.choices == ("<detect(person)>", "<detect(box)>", "<read()>", "none")
    assert sum(answer.probabilities) == pytest.approx(1)
    assert answer.text == answer.choices[int(np.argmax(answer.probabilities))]
