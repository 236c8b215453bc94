"""The measures give what their papers say, at and around their borders."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.tools.metrics import METRICS, anls, best_match, contains, exact, relaxed


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [(" Red. ", "red", 1), ("red", "Red.", 1), ("red..", "red", 0), ("dark red", "red", 0), ("", "red", 0)],
)
def test_exact_forgives_case_outer_spaces_and_one_period(answer: str, truth: str, score: float) -> None:
    assert exact(answer, truth) == score


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [("It says STOP\nhere.", "stop here", 1), ("sto", "stop", 0), ("unstoppable", "stop", 1)],
)
def test_contains_looks_for_the_truth_within(answer: str, truth: str, score: float) -> None:
    assert contains(answer, truth) == score


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("105", "100", 1),
        ("94.9", "100", 0),
        ("-95", "-100", 1),
        ("95", "-100", 0),
        ("12%", "0.12", 1),
        ("12", "12%", 0),
        ("3.", "3", 1),
        ("0.01", "0", 0),
        ("0", "0", 1),
        ("three", "3", 0),
        ("Brazil", "brazil", 1),
        ("nan", "nan", 1),
        ("inf", "5", 0),
    ],
)
def test_relaxed_lets_numbers_miss_by_a_twentieth(answer: str, truth: str, score: float) -> None:
    assert relaxed(answer, truth) == score


@pytest.mark.parametrize(
    ("answer", "truth", "score"),
    [
        ("abcd", "ABXD", 0.75),
        ("ab", "xb", 0),
        ("kitten", "sitting", 1 - 3 / 7),
        ("", "", 1),
        ("", "a", 0),
        ("aaa", "aab", 2 / 3),
    ],
)
def test_anls_is_a_share_of_edits_below_the_threshold(answer: str, truth: str, score: float) -> None:
    assert anls(answer, truth) == pytest.approx(score)


@given(st.text(alphabet="ab c", max_size=8), st.text(alphabet="ab c", max_size=8))
def test_anls_agrees_with_a_recursion(first: str, second: str) -> None:
    def distance(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        if a[0] == b[0]:
            return distance(a[1:], b[1:])
        return 1 + min(distance(a[1:], b), distance(a, b[1:]), distance(a[1:], b[1:]))

    told, true = (" ".join(text.split())[:5].strip() for text in (first, second))  # blanks count once, outer ones never
    share = distance(told, true) / max(len(told), len(true), 1)

    assert anls(told, true) == pytest.approx(1 - share if share < 0.5 else 0)


@pytest.mark.parametrize("metric", METRICS)
@given(text=st.text(min_size=1))
def test_truth_itself_is_right_by_every_measure(metric: str, text: str) -> None:
    assert best_match(metric, text, [text, "something else"]) == 1


def test_best_of_several_truths_counts() -> None:
    assert best_match("anls", "abcd", ["zzzz", "abxd", "abyy"]) == 0.75
