"""Progress is printed also where nobody watches, and not by ranks that show nothing."""

from __future__ import annotations

import pytest

from nvila_ros.tools.progress import NUM_LINES, CountProgress


def count(total: int, done: int = 0, *, is_shown: bool = True) -> None:
    with CountProgress("work", total, done=done, is_shown=is_shown) as progress:
        for unit in range(done, total):
            progress.advance(f"unit {unit}")
        assert progress.done == total


@pytest.mark.parametrize("total", [1, 7, NUM_LINES, 19 * NUM_LINES + 3])
def test_piped_progress_is_a_line_now_and_then_and_one_at_the_end(
    total: int, capsys: pytest.CaptureFixture[str]
) -> None:
    count(total)

    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == min(total, NUM_LINES)
    assert lines[-1] == f"work: {total}/{total} unit {total - 1}"
    assert captured.out == ""


def test_work_that_goes_on_counts_what_was_done(capsys: pytest.CaptureFixture[str]) -> None:
    count(40, done=38)

    assert capsys.readouterr().err.splitlines() == ["work: 40/40 unit 39"]


def test_hidden_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    count(3, is_shown=False)

    assert capsys.readouterr().err == ""
