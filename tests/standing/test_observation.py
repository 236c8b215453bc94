from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.standing.observation import read_answer
from nvila_ros.standing.query import StandingQuery
from nvila_ros.types import FinishReason
from tests.standing.obvious import S, answer_of

YES_NO = StandingQuery(name="q", question="?", trigger="rising")
CHOICE = StandingQuery(name="q", question="?", answer_type="choices", choices=("red", "Green"))
ALIKE = StandingQuery(name="q", question="?", answer_type="choices", choices=("Go", "GO", "etc."))
COUNT = StandingQuery(name="q", question="?", answer_type="integer", minimum=-2, maximum=12)
CROWD = StandingQuery(name="q", question="?", answer_type="integer", minimum=0, maximum=3, trigger="rising", target="2")
JSON = StandingQuery(name="q", question="?", answer_type="json", json_schema='{"type": "object"}')
TEXT = StandingQuery(name="q", question="?", answer_type="text")
WHEN = StandingQuery(name="q", question="a fall", answer_type="when")


def value(query: StandingQuery, text: str) -> str | None:
    observation = read_answer(query, answer_of(query, text, S))
    return observation.value if observation else None


@pytest.mark.parametrize("reason", [reason for reason in FinishReason if not reason.is_answered])
def test_answers_that_the_model_did_not_end_do_not_count(reason: FinishReason) -> None:
    assert read_answer(YES_NO, answer_of(YES_NO, "yes", S, reason=reason)) is None


def test_answers_without_frames_do_not_count() -> None:
    assert read_answer(YES_NO, answer_of(YES_NO, "yes", None)) is None


@pytest.mark.parametrize(
    ("query", "text", "said"),
    [
        (YES_NO, "yes", "yes"),
        (YES_NO, "No.", "no"),
        (YES_NO, "perhaps", None),
        (CHOICE, "green", "Green"),
        (CHOICE, "blue", None),
        (COUNT, " 007 ", "7"),
        (COUNT, "-2", "-2"),
        (COUNT, "12", "12"),
        (COUNT, "13", None),
        (COUNT, "-3", None),
        (ALIKE, "GO", "GO"),
        (ALIKE, "Go", "Go"),
        (ALIKE, "go", "Go"),
        (ALIKE, "etc.", "etc."),
        (COUNT, "3.0", None),
        (COUNT, "\u0663", None),
        (JSON, '{"b": 1, "a": [2]}', '{"a": [2], "b": 1}'),
        (JSON, '{"a": ', None),
        (JSON, "[" * 100_000, None),
        (TEXT, " A  Dog\nruns. ", "a dog runs"),
        (WHEN, '{"happens": 0.5, "intervals": []}', "yes"),
        (WHEN, '{"happens": 0.49, "intervals": []}', "no"),
    ],
)
def test_what_an_answer_says(query: StandingQuery, text: str, said: str | None) -> None:
    assert value(query, text) == said


@pytest.mark.parametrize(
    ("query", "text", "said"),
    [
        (COUNT, "1", None),
        (COUNT, "-1", None),
        (JSON, "1", None),
        (JSON, '{"a": 1}', '{"a": 1}'),
        (TEXT, "Room 1", "room 1"),
    ],
)
def test_number_that_may_have_been_cut_off_says_nothing(query: StandingQuery, text: str, said: str | None) -> None:
    observation = read_answer(query, answer_of(query, text, S, reason=FinishReason.LENGTH))

    assert (observation.value if observation else None) == said


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.booleans() | st.none(), max_size=5), st.randoms())
def test_order_of_keys_changes_no_json(given_: dict[str, object], random: object) -> None:
    items = list(given_.items())
    random.shuffle(items)  # type: ignore[attr-defined]

    assert value(JSON, json.dumps(given_)) == value(JSON, json.dumps(dict(items), indent=2))


def test_probability_is_that_of_the_target_and_not_of_what_was_said() -> None:
    answer = answer_of(YES_NO, "no", S, choices=("yes", "no"), probabilities=(0.3, 0.7))

    observation = read_answer(YES_NO, answer)

    assert observation is not None
    assert (observation.value, observation.probability) == ("no", 0.3)


def test_probability_without_a_target_is_that_of_what_was_said() -> None:
    answer = answer_of(CHOICE, "Green", S, choices=("red", "Green"), probabilities=(0.2, 0.8))

    observation = read_answer(CHOICE, answer)

    assert observation is not None
    assert observation.probability == 0.8


def test_probability_of_a_number_is_that_of_reaching_it() -> None:
    answer = answer_of(CROWD, "1", S, choices=tuple("0123"), probabilities=(0.1, 0.4, 0.3, 0.2))

    observation = read_answer(CROWD, answer)

    assert observation is not None
    assert (observation.value, observation.probability) == ("1", 0.5)


@pytest.mark.parametrize(("text", "probability"), [("yes", 1.0), ("no", 0.0)])
def test_answer_without_probabilities_is_taken_as_certain(text: str, probability: float) -> None:
    observation = read_answer(YES_NO, answer_of(YES_NO, text, S))

    assert observation is not None
    assert observation.probability == probability
