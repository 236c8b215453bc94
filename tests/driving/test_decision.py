"""Which of the ten actions an answer means, and what is no answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.driving.decision import make_way, objection, read_choice
from nvila_ros.driving.motion import Space
from nvila_ros.driving.outcomes import Fault, ScoredStep
from nvila_ros.prompt.navila import ACTIONS, SENTENCES, Action
from nvila_ros.types import NS_PER_S

START_NS = 5_000 * NS_PER_S
CERTAIN = (0.91, *(0.01,) * 9)


@given(probabilities=st.lists(st.floats(), max_size=12), stamps=st.lists(st.integers(1, 10**12), max_size=3))
def test_what_is_no_answer_about_the_ten_is_refused(probabilities: list[float], stamps: list[int]) -> None:
    found = read_choice("q", SENTENCES, probabilities, stamps, "", 10**12)

    if isinstance(found, ScoredStep):
        assert len(probabilities) == 10
        assert abs(sum(probabilities) - 1) <= 0.011
        assert stamps
    assert isinstance(read_choice("q", SENTENCES[:9], CERTAIN[:9], [1], "", 1), Fault)


@pytest.mark.parametrize(
    ("probabilities", "action"),
    [
        ((0.25, *(0.25 / 3,) * 9), 0),  # of equals the first: to stop
        ((0.3, 0, 0, 0, 0.2, 0.25, 0.15, 0, 0.1, 0), 5),  # three wishes to turn left are one
        ((0.1, 0.2, 0.3, 0.1, 0, 0.3, 0, 0, 0, 0), 2),
    ],
)
def test_the_likeliest_kind_is_chosen_and_then_its_likeliest_amount(
    probabilities: tuple[float, ...], action: int
) -> None:
    choice = read_choice("q", SENTENCES, probabilities, [START_NS], "", START_NS)

    assert isinstance(choice, ScoredStep)
    assert choice.action == ACTIONS[action]
    assert choice.probability == probabilities[action]


def test_old_frames_are_refused() -> None:
    choice = read_choice("q", SENTENCES, CERTAIN, [START_NS], "", START_NS + 2 * NS_PER_S)
    assert isinstance(choice, ScoredStep)
    old = objection(choice, min_probability=0.05, max_age_s=1.0, settled_ns=0)
    before = objection(choice, min_probability=0.05, max_age_s=9.0, settled_ns=START_NS + 1)
    assert old is not None
    assert before is not None
    assert "2.00 s old" in old.text
    assert "before the last step" in before.text


LEFT, RIGHT = ACTIONS[6], ACTIONS[9]


def chosen(action: int) -> ScoredStep:
    return ScoredStep(
        ACTIONS[action], CERTAIN[0], "q", tuple(0.91 if k == action else 0.01 for k in range(10)), (), "", 0
    )


@pytest.mark.parametrize(
    ("turns", "action", "made"),
    [
        ([LEFT] * 7, 6, 6),  # the eighth turn of 45 degrees ends the round
        ([LEFT] * 8, 6, 2),  # what it looks for is not seen from here
        ([RIGHT] * 8, 9, 2),
        ([LEFT, RIGHT], 9, 9),
        ([LEFT, RIGHT], 6, 2),  # back for the second time: what it looks for lies between
        ([], 3, 3),
    ],
)
def test_turns_in_vain_end_in_a_way_ahead(turns: list[Action], action: int, made: int) -> None:
    found = make_way(chosen(action), Space(ahead_m=1.0), "", turns)

    assert found.action == ACTIONS[made]
    assert make_way(chosen(6), Space(ahead_m=0.2), "", [LEFT] * 8).action.kind == "left"  # where there is room
