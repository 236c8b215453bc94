"""Walks as conversations: the same each time, gone on with, and read as independent turns about eight frames."""

from __future__ import annotations

from pathlib import Path

import pytest

from nvila_ros.prompt.navila import NUM_FRAMES, parse
from nvila_ros.training.conversations.files import RecordFile
from nvila_ros.training.nav_data import LOOK, RECORDS, WALK, count_walks, write_walks
from nvila_ros.world.question_kinds import PLACES

pytestmark = pytest.mark.slow


def test_walks_are_records_of_one_and_of_eight_frames_and_are_gone_on_with(tmp_path: Path) -> None:
    written: list[int] = []
    write_walks(tmp_path, 1, image_px=28, on_walk=lambda: written.append(1))
    first = (tmp_path / RECORDS[WALK]).read_text(encoding="utf-8")
    write_walks(tmp_path, 2, image_px=28, on_walk=lambda: written.append(2))

    assert written == [1, 2]
    assert count_walks(tmp_path, 3) == 2
    assert (tmp_path / RECORDS[WALK]).read_text(encoding="utf-8").startswith(first)
    for stage, num_frames in ((LOOK, 1), (WALK, NUM_FRAMES)):
        file = RecordFile(tmp_path / RECORDS[stage], tmp_path)
        assert len(file) > 2
        for index in range(len(file)):
            sample = file.read(index)
            assert sample.is_independent
            assert len(sample.turns[0].media) == num_frames
            assert sample.turns[0].media[-1].read(1)[0].shape == (28, 28, 3)
            for turn in sample.turns:
                if turn.text.startswith("Where is the"):
                    assert stage == LOOK
                    assert turn.answer in PLACES
                    continue
                action = parse(turn.answer)
                assert action is not None
                assert turn.answer == action.sentence
                assert "Your assigned task is" in turn.text
