"""The words of NaVILA's protocol, to the letter, and how its sentences are read."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import QueryError
from nvila_ros.prompt.navila import ACTIONS, SENTENCES, frames_first, parse, question, sample_frames, upstream


def test_the_question_is_upstreams_to_the_letter() -> None:
    assert upstream("Go to the sofa.", 3) == (
        "Imagine you are a robot programmed for navigation tasks. You have been given a video of historical "
        "observations <image>\n<image>\n, and current observation <image>\n. "
        'Your assigned task is: "Go to the sofa." '
        "Analyze this series of images to decide your next action, which could be turning left or right by a specific "
        "degree, moving forward a certain distance, or stop if the task is completed."
    )


def test_without_the_images_places_the_words_are_the_same() -> None:
    assert frames_first("Go.") == upstream("Go.").replace(" <image>\n" + "<image>\n" * 6, "").replace(" <image>\n", "")


def test_there_are_ten_actions_and_each_sentence_says_its_own() -> None:
    assert len(set(SENTENCES)) == len(ACTIONS) == 10
    assert [parse(action.sentence) for action in ACTIONS] == list(ACTIONS)


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("The next action is move forward 75 cm.", "forward", 0.75),
        ("the next action is turn left 30 degrees", "left", math.radians(30)),
        ("the next action IS TURN LEFT 30 degrees", "left", math.radians(15)),
        ("The next action is turn right.", "right", math.radians(15)),
        ("The next action is move forward.", "forward", 0.25),
        ("The next action is move forward 60 cm.", "forward", 0.5),
        ("The next action is turn right 40 degree.", "right", math.radians(45)),
        ("The next action is move forward 400 cm.", "forward", 0.75),
        ("The next action is move forward 0 cm.", "forward", 0.25),
        ("Is move forward 25 cm? No: stop.", "stop", 0.0),
    ],
)
def test_a_sentence_is_read_as_upstream_reads_it_but_for_the_bound(text: str, kind: str, amount: float) -> None:
    action = parse(text)

    assert action is not None
    assert action.kind == kind
    assert math.isclose(action.amount, amount)


@pytest.mark.parametrize("text", ["", "do not move", "move", "forward 25 cm", "nonstop driving", "turn left 15 degree"])
def test_what_says_no_action_is_none(text: str) -> None:
    assert parse(text) is None


@given(text=st.text())
def test_whatever_is_said_an_action_is_of_the_closed_list(text: str) -> None:
    assert parse(f"The next action is move forward {text} cm") in ACTIONS
    assert parse(text) in (*ACTIONS, None)


@given(count=st.integers(1, 400), num_frames=st.integers(2, 9))
def test_frames_are_those_of_upstreams_linspace(count: int, num_frames: int) -> None:
    padded = [-1] * (num_frames - count) + list(range(count))
    indices = np.linspace(0, len(padded) - 1, num=num_frames - 1, endpoint=False, dtype=int)

    shown = sample_frames(list(range(count)), -1, num_frames)

    assert len(shown) == num_frames
    assert shown[-1] == count - 1
    # Upstream cuts a float that rounding may leave just below the whole number.
    assert all(abs(a - padded[b]) <= 1 for a, b in zip(shown, indices, strict=False))


def test_a_wording_is_known_and_an_instruction_holds_text() -> None:
    assert question("short", " Go. ") == 'Your assigned task is: "Go." Decide your next action.'
    with pytest.raises(QueryError, match="wording must be one of short, navila"):
        question("long", "Go.")
    with pytest.raises(QueryError, match="must hold text"):
        question("short", "  ")
