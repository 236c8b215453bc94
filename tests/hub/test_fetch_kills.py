"""A fetch that is killed leaves nothing that loads, and the next one completes it."""

from pathlib import Path

import pytest

from tests.hub.fetch_kills import kill_often


@pytest.mark.slow
def test_kills_end_in_identical_files(tmp_path: Path) -> None:
    result = kill_often(4_000_000, 3, 1, tmp_path)

    assert result["is_identical"]
    assert result["exit_code"] == 0
    assert result["loaded_unfinished"] == 0
    assert 0 < result["sent_before_last_run"] < result["sent"]
