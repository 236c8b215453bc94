"""Probabilities of choices from tokens: exact where the likeliest tokens say it all, and never more than 1."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.remote.choices import spelling_shares
from nvila_ros.types import TokenLogprob


def token(text: str, **shares: float) -> TokenLogprob:
    """A token and the likeliest ones in its place, itself among them."""
    top = tuple((name.encode(), math.log(share)) for name, share in shares.items())
    return TokenLogprob(text.encode(), dict(top)[text.encode()], top)


def test_the_first_token_decides_between_words() -> None:
    shares = spelling_shares(["up", "down"], [token("up", up=0.2, down=0.6, left=0.2)])

    assert shares == pytest.approx([0.25, 0.75])


def test_a_common_beginning_is_decided_further_on() -> None:
    tokens = [token("le", le=0.8, up=0.2), token("ft", ft=0.5, ap=0.5)]

    assert spelling_shares(["left", "leap", "up"], tokens) == pytest.approx([0.4, 0.4, 0.2])


def test_one_that_begins_another_takes_what_ends_there() -> None:
    tokens = [token("1", **{"1": 0.9, "2": 0.1})]

    assert spelling_shares(["1", "12", "2"], tokens) == pytest.approx([0.9, 0.0, 0.1])


def test_a_path_not_taken_shares_evenly_among_what_it_leads_to() -> None:
    assert spelling_shares(["up", "left", "leap"], [token("up", up=0.5, le=0.5)]) == pytest.approx([0.5, 0.25, 0.25])


def test_blanks_before_and_signs_behind_do_not_matter() -> None:
    blank = TokenLogprob(b" \n", 0.0, ((b" \n", 0.0), (b"yes", -1.0)))

    assert spelling_shares(["yes", "no"], [blank, token("yes.", **{"yes.": 0.75, " no": 0.25})]) == pytest.approx(
        [0.75, 0.25]
    )


def test_a_word_that_goes_on_otherwise_is_another_word() -> None:
    assert spelling_shares(["yes", "no"], [token("no", no=0.5, yesterday=0.5)]) == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("tokens", [[], [token("maybe", maybe=0.9, yes=0.1)], [TokenLogprob(b"", 0.0)]])
def test_what_leads_to_no_choice_has_no_probabilities(tokens: list[TokenLogprob]) -> None:
    assert spelling_shares(["yes", "no"], tokens) is None


def test_text_before_the_choice_is_left_out() -> None:
    tokens = [token('{"answer":', **{'{"answer":': 1.0}), token('"no', **{'"no': 0.4, '"yes': 0.6})]

    assert spelling_shares(['"yes"', '"no"'], tokens, len('{"answer":')) == pytest.approx([0.6, 0.4])


WORDS = st.lists(st.text("ab", min_size=1, max_size=4), min_size=2, max_size=6, unique=True)


@given(WORDS, st.data())
def test_letters_as_tokens_give_back_the_probabilities_that_they_came_from(
    words: list[str], data: st.DataObject
) -> None:
    words = [f"{word}." for word in words]  # no word begins another
    weights = np.array([data.draw(st.integers(1, 9)) for _ in words], float)
    chosen = data.draw(st.sampled_from(words))
    tokens = []
    for place, letter in enumerate(chosen):
        mass = {
            other: sum(w for w, word in zip(weights, words, strict=True) if word.startswith(chosen[:place] + other))
            for other in "ab."
        }
        whole = sum(mass.values())
        tokens.append(token(letter, **{other: share / whole for other, share in mass.items() if share}))

    shares = spelling_shares(words, tokens)

    assert shares is not None
    assert shares.sum() == pytest.approx(1.0)
    assert shares[words.index(chosen)] == pytest.approx(weights[words.index(chosen)] / weights.sum())
