"""Strategies of hypothesis that several test files share."""

from __future__ import annotations

from typing import TypeVar

from hypothesis import strategies as st

T = TypeVar("T")


def lists_of_all_sizes(
    elements: st.SearchStrategy[T], *, min_size: int = 0, max_size: int, unique: bool = False
) -> st.SearchStrategy[list[T]]:
    """Return lists of which each size is as likely; half of those of `st.lists` have at most six elements."""
    return st.integers(min_size, max_size).flatmap(
        lambda size: st.lists(elements, min_size=size, max_size=size, unique=unique)
    )
