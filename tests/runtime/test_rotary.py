"""Rows of the rotary tables, which grow, against whole tables."""

from __future__ import annotations

import dataclasses

import numpy as np

from nvila_ros.runtime.rotary import FIRST_POSITIONS, RotaryRows, rotary_tables
from nvila_ros.training.tiny import SPEC

DECODER = dataclasses.replace(SPEC.decoder, max_positions=8 * FIRST_POSITIONS + 5)


def test_rows_are_those_of_whole_tables_whatever_was_asked_for_before() -> None:
    rows, (cos, sin) = RotaryRows(DECODER), rotary_tables(DECODER, DECODER.max_positions)
    rng = np.random.default_rng(0)

    for highest in (1, FIRST_POSITIONS, FIRST_POSITIONS + 1, 7, 4 * FIRST_POSITIONS, DECODER.max_positions):
        positions_L = rng.permutation(highest)[-50:]
        got_cos, got_sin = rows(positions_L)

        np.testing.assert_array_equal(got_cos, cos[positions_L])
        np.testing.assert_array_equal(got_sin, sin[positions_L])
    assert rows(np.empty(0, np.int64))[0].shape == (0, DECODER.head_size)


def test_tables_grow_seldom_and_no_further_than_the_model_goes() -> None:
    rows, sizes = RotaryRows(DECODER), set()

    for position in range(DECODER.max_positions):
        rows(np.array([position]))
        sizes.add(rows.num_held)

    assert max(sizes) == DECODER.max_positions
    assert len(sizes) <= 7


def test_a_model_of_few_positions_holds_no_more() -> None:
    assert RotaryRows(dataclasses.replace(DECODER, max_positions=100)).num_held == 100
