from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.video.sampling import sample_indices, split_frames

STAMPS = st.lists(st.integers(0, 1000), min_size=1, max_size=40, unique=True).map(sorted)


def naive_sample(stamps_ns: list[int], num_frames: int) -> list[int]:
    """Take the shares of time one by one, newest first, and search every frame that is still allowed."""
    count = min(num_frames, len(stamps_ns))
    chosen: list[int] = []
    for k in range(count):
        target = stamps_ns[-1] - (stamps_ns[-1] - stamps_ns[0]) * k // max(count - 1, 1)
        allowed = range(count - 1 - k, chosen[-1] if chosen else len(stamps_ns))
        if count == 1 or k == 0:
            allowed = range(len(stamps_ns) - 1, len(stamps_ns))
        chosen.append(min(allowed, key=lambda i, target=target: abs(stamps_ns[i] - target)))
    return chosen[::-1]


@given(STAMPS, st.integers(1, 50))
def test_sample_equals_the_naive_search(stamps: list[int], num_frames: int) -> None:
    if num_frames < len(stamps):
        assert sample_indices(stamps, num_frames) == naive_sample(stamps, num_frames)


@given(STAMPS, st.integers(1, 50))
def test_sample_is_ascending_and_ends_with_the_newest(stamps: list[int], num_frames: int) -> None:
    indices = sample_indices(stamps, num_frames)

    assert indices == sorted(set(indices))
    assert indices[-1] == len(stamps) - 1
    assert len(indices) == min(num_frames, len(stamps))
    assert indices[0] >= 0


def test_one_frame_is_the_newest() -> None:
    assert sample_indices([1, 2, 9], 1) == [2]


def test_even_stream_is_sampled_evenly() -> None:
    assert sample_indices(range(0, 61 * 33, 33), 7) == [0, 10, 20, 30, 40, 50, 60]


def test_a_gap_in_time_is_not_filled_from_the_dense_part() -> None:
    stamps = [*range(10), 50, *range(90, 101)]

    chosen = [stamps[i] for i in sample_indices(stamps, 3)]

    assert chosen == [0, 50, 100]


@given(st.integers(0, 60), st.lists(st.integers(0, 20), max_size=6))
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
