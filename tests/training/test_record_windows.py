"""Pictures of more than eight bits in records and bags are shown through the window that was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from nvila_ros.tools.find.recording import open_recording
from nvila_ros.tools.records import open_sources
from nvila_ros.training.conversations.record_media import read_medium
from nvila_ros.training.conversations.samples import SampleTurn
from nvila_ros.video.windowing import AUTO, OWN, Window, parse_window, show_values
from tests.video.bag_files import T0_NS, answer, image, write_bag

VALUES = np.arange(24 * 32, dtype=np.uint16).reshape(24, 32) * 40
WINDOW = parse_window("2000:9000")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Records of one picture as a file, as a video of one file, and in a bag, and answers in that bag."""
    assert cv2.imwrite(str(tmp_path / "heat.png"), VALUES)
    (tmp_path / "video").mkdir()
    assert cv2.imwrite(str(tmp_path / "video" / "0.png"), VALUES)
    write_bag(tmp_path / "bag", [image(VALUES, T0_NS, "mono16"), answer("What?", "heat", [T0_NS])])
    said = {"question": "What?", "answer": "heat"}
    media = [{"image": "heat.png"}, {"video": "video"}, {"bag": "bag", "time_s": 0}]
    (tmp_path / "set.jsonl").write_text("\n".join(json.dumps(said | each) for each in media))
    return tmp_path


def shown(turn: SampleTurn) -> np.ndarray:
    """The one picture of a turn, of which each channel is the same."""
    (picture,) = read_medium(turn.parts[0], 1, "r")
    assert (picture == picture[..., :1]).all()
    return picture[..., 0]


@pytest.mark.parametrize("window", [WINDOW, Window(AUTO)], ids=str)
def test_each_way_to_name_a_picture_takes_the_window(folder: Path, window: Window) -> None:
    (records,) = open_sources([folder / "set.jsonl"], None, window=window)
    (recorded,) = open_sources([folder / "bag"], None, reads_bags=True, window=window)

    turns = [*(records.read(i).turns[0] for i in range(3)), recorded.read(0).turns[0]]

    for turn in turns:
        assert np.array_equal(shown(turn), show_values(VALUES, window))
    for path in (folder / "video", folder / "bag"):
        recording = open_recording(path, window=window)
        assert np.array_equal(recording.read([0])[0].image[..., 0], show_values(VALUES, window))
        recording.close()


def test_without_one_pictures_are_shown_as_before_and_runs_stay_the_same(folder: Path) -> None:
    (records,), (other,) = (
        open_sources([folder / "set.jsonl"], None),
        open_sources([folder / "set.jsonl"], None, window=WINDOW),
    )

    assert np.array_equal(shown(records.read(0).turns[0]), show_values(VALUES, OWN))
    assert set(records.identity()) == {"digest", "media"}
    assert other.identity() == records.identity() | {"window": "2000:9000"}
