from __future__ import annotations

import functools
import math
from collections.abc import Callable
from fractions import Fraction
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nvila_ros.video.sampling import (
    RECENT_RATIO,
    TIME_WEIGHT,
    sample_changes,
    sample_indices,
    sample_recent,
    split_frames,
)
from tests.strategies import lists_of_all_sizes

STAMPS = lists_of_all_sizes(st.integers(0, 1000), min_size=1, max_size=40, unique=True).map(sorted)
CHANGES = st.lists(st.one_of(st.just(0.0), st.floats(0.125, 50.0, width=16)), min_size=39, max_size=39)


def naive_sample(stamps_ns: list[int], num_frames: int) -> list[int]:
    """Take the shares of time one by one, newest first, and search every frame that is still allowed."""
    count = min(num_frames, len(stamps_ns))
    chosen = [len(stamps_ns) - 1]
    for k in range(1, count):
        target = stamps_ns[-1] - (stamps_ns[-1] - stamps_ns[0]) * k // (count - 1)
        chosen.append(min(range(count - 1 - k, chosen[-1]), key=lambda i, target=target: abs(stamps_ns[i] - target)))
    return chosen[::-1]


def assert_nearest(positions: list[Fraction], targets: list[Fraction], chosen: list[int], slack: Fraction) -> None:
    """Check that each choice, newest first, is nearest to its target among all that were left, but for rounding."""
    assert chosen[-1] == len(positions) - 1
    assert len(chosen) == len(targets)
    for num_older in range(len(targets) - 1):
        target = targets[len(targets) - 1 - num_older]
        best = min(abs(positions[i] - target) for i in range(num_older, chosen[num_older + 1]))
        assert abs(positions[chosen[num_older]] - target) <= best + slack


def naive_recent(stamps_ns: list[int], count: int) -> list[Fraction]:
    """Lay gap beside gap, each longer by the same factor, and scale the whole to the window."""
    ages = [Fraction(0)]
    for k in range(count - 1):
        ages.append(ages[-1] + Fraction(RECENT_RATIO ** (k / max(count - 2, 1))))
    scale = Fraction(stamps_ns[-1] - stamps_ns[0]) / (ages[-1] or 1)
    return [stamps_ns[-1] - age * scale for age in ages]


def naive_mix(stamps_ns: list[int], changes: list[float]) -> list[Fraction]:
    """Return each step as its share of the change and of the time, weighed."""
    total, span_ns = sum(map(Fraction, changes)), stamps_ns[-1] - stamps_ns[0]
    weight = Fraction(TIME_WEIGHT)
    steps = [weight * Fraction(b - a, span_ns) for a, b in pairwise(stamps_ns)]
    if total:
        steps = [step + (1 - weight) * Fraction(change) / total for step, change in zip(steps, changes, strict=True)]
    return steps


def naive_capped(steps: list[Fraction], num_gaps: int) -> list[Fraction]:
    """Lower the largest steps by and by until none is above an even share of the sum."""
    is_capped = [False] * len(steps)
    while True:
        left = sum(step for step, capped in zip(steps, is_capped, strict=True) if not capped)
        share = left / (num_gaps - sum(is_capped))
        above = [i for i, step in enumerate(steps) if not is_capped[i] and step > share]
        if not above:
            return [share if capped else step for step, capped in zip(steps, is_capped, strict=True)]
        is_capped[max(above, key=lambda i: steps[i])] = True


def sample_with_changes(stamps_ns: list[int], num_frames: int) -> list[int]:
    return sample_changes(stamps_ns, [float(stamp % 7) for stamp in stamps_ns[1:]], num_frames)


@given(STAMPS, st.integers(1, 20))
def test_sample_equals_the_naive_search(stamps: list[int], num_frames: int) -> None:
    if num_frames < len(stamps):
        assert sample_indices(stamps, num_frames) == naive_sample(stamps, num_frames)


@given(STAMPS, st.integers(1, 20))
def test_recent_sample_is_as_near_to_growing_gaps_as_can_be(stamps: list[int], num_frames: int) -> None:
    targets = naive_recent(stamps, min(num_frames, len(stamps)))

    assert_nearest([Fraction(stamp) for stamp in stamps], targets, sample_recent(stamps, num_frames), Fraction(1))


@given(STAMPS, CHANGES, st.integers(1, 20))
def test_change_driven_sample_is_as_near_to_equal_shares_as_can_be(
    stamps: list[int], changes: list[float], num_frames: int
) -> None:
    count, changes = min(num_frames, len(stamps)), changes[: len(stamps) - 1]
    steps = naive_capped(naive_mix(stamps, changes), count - 1) if count > 1 else []
    positions = [sum(steps[:i], Fraction(0)) for i in range(len(stamps))]
    targets = [positions[-1] * Fraction(count - 1 - k, max(count - 1, 1)) for k in range(count)]

    assert_nearest(positions, targets, sample_changes(stamps, changes, num_frames), Fraction(1, 10**9))


@given(st.integers(1, 60), st.integers(1, 13))
def test_still_picture_is_sampled_evenly_in_time(num_stamps: int, num_frames: int) -> None:
    step_ns = math.lcm(*range(1, 13))  # shares of the time are whole
    stamps = [step_ns * i for i in range(num_stamps)]

    assert sample_changes(stamps, [0.0] * (num_stamps - 1), num_frames) == sample_indices(stamps, num_frames)


@pytest.mark.parametrize(
    ("sample", "stamps"),
    [
        (sample_indices, [0, 4, 6, 10]),  # 5 is meant
        (sample_recent, [0, 31, 33, 34]),  # 32, since the older gap is 16 times the newer
        (functools.partial(sample_changes, changes=[1.0, 2.0, 1.0]), [0, 2, 6, 8]),  # 0.5 of 1, between 0.25 and 0.75
        (functools.partial(sample_changes, changes=[0.0] * 3), [0, 4, 6, 10]),  # 0.1 of 0.2, between 0.08 and 0.12
    ],
    ids=["uniform", "recent", "change", "change of a still picture"],
)
def test_of_two_frames_that_are_equally_near_the_older_is_taken(sample: Callable[..., list[int]], stamps: Any) -> None:
    assert sample(stamps, num_frames=3) == [0, 1, 3]


def test_frame_that_is_nearer_is_taken_though_it_is_the_newer() -> None:
    assert sample_indices([0, 3, 6, 10], 3) == [0, 2, 3]
    assert sample_recent([0, 30, 33, 34], 3) == [0, 2, 3]
    assert sample_changes([0, 4, 6, 10], [0.999, 0.0, 1.0], 3) == [0, 2, 3]


@given(STAMPS, CHANGES, st.integers(1, 20))
def test_only_the_proportion_of_changes_counts(stamps: list[int], changes: list[float], num_frames: int) -> None:
    changes = changes[: len(stamps) - 1]
    slight = [change / 2**20 for change in changes]

    assert sample_changes(stamps, slight, num_frames) == sample_changes(stamps, changes, num_frames)


def test_both_sides_of_a_cut_are_shown_and_the_rest_is_spread_over_time() -> None:
    changes = [0.0] * 97
    changes[48] = 40.0

    assert sample_changes(range(98), changes, 6) == [0, 24, 48, 49, 73, 97]


def test_frames_follow_what_changes() -> None:
    changes = [5.0 if 30 <= i < 50 else 0.0 for i in range(99)]

    chosen = sample_changes(range(100), changes, 11)

    assert sum(30 <= i <= 50 for i in chosen) == 9


def test_recent_gaps_grow_by_one_factor() -> None:
    stamps = list(range(10_000))

    chosen = sample_recent(stamps, 8)

    gaps = [b - a for a, b in pairwise(chosen)]
    factors = [a / b for a, b in pairwise(gaps)]
    assert (chosen[0], chosen[-1]) == (0, 9_999)
    assert gaps[0] / gaps[-1] == pytest.approx(RECENT_RATIO, rel=0.02)
    assert factors == pytest.approx([RECENT_RATIO ** (1 / 6)] * 6, rel=0.02)


@pytest.mark.parametrize("sample", [sample_indices, sample_recent, sample_with_changes])
@given(stamps=STAMPS, num_frames=st.integers(1, 20))
def test_sample_is_ascending_and_ends_with_the_newest(
    sample: Callable[[list[int], int], list[int]], stamps: list[int], num_frames: int
) -> None:
    indices = sample(stamps, num_frames)

    assert indices == sorted(set(indices))
    assert indices[-1] == len(stamps) - 1
    assert len(indices) == min(num_frames, len(stamps))
    assert indices[0] >= 0


@pytest.mark.parametrize("sample", [sample_indices, sample_recent, sample_with_changes])
def test_one_frame_is_the_newest(sample: Callable[[list[int], int], list[int]]) -> None:
    assert sample([1, 2, 9], 1) == [2]


@pytest.mark.parametrize("sample", [sample_indices, sample_recent])
@given(stamps=STAMPS, num_frames=st.integers(1, 12))
def test_stamps_of_today_are_told_apart_to_the_nanosecond(
    sample: Callable[[list[int], int], list[int]], stamps: list[int], num_frames: int
) -> None:
    epoch_ns = 1_700_000_000_000_000_001  # a float is 128 ns from the next

    assert sample([epoch_ns + stamp for stamp in stamps], num_frames) == sample(stamps, num_frames)


def test_even_stream_is_sampled_evenly() -> None:
    assert sample_indices(range(0, 61 * 33, 33), 7) == [0, 10, 20, 30, 40, 50, 60]


def test_a_gap_in_time_is_not_filled_from_the_dense_part() -> None:
    stamps = [*range(10), 50, *range(90, 101)]

    chosen = [stamps[i] for i in sample_indices(stamps, 3)]

    assert chosen == [0, 50, 100]


@given(st.integers(0, 60), st.lists(st.integers(0, 20), max_size=6))
@example(26, [1, 5, 20])  # three rounds of dealing, each to fewer cameras
def test_split_equals_dealing_one_by_one(num_frames: int, held: list[int]) -> None:
    dealt = [0] * len(held)
    left = num_frames
    while left and any(d < h for d, h in zip(dealt, held, strict=True)):
        for i, num_held in enumerate(held):
            if left and dealt[i] < num_held:
                dealt[i] += 1
                left -= 1

    assert split_frames(num_frames, held) == dealt


def test_no_choice_of_the_same_size_is_more_even() -> None:
    stamps = [0, 1, 2, 30, 31, 60, 61, 90]

    chosen = sample_indices(stamps, 4)

    def worst(indices: tuple[int, ...]) -> int:
        return max(abs(stamps[i] - target) for i, target in zip(indices, (0, 30, 60, 90), strict=True))

    assert worst(tuple(chosen)) == min(map(worst, combinations(range(len(stamps)), 4)))
