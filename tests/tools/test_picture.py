"""The picture shows the newest frame as it is, and every text in full."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from nvila_ros.errors import FrameError
from nvila_ros.tools.picture import FRAME_HEIGHT, FRAME_WIDTH, WIDTH, draw_answer, save_picture
from nvila_ros.types import Frame


def _frames(count: int, width: int = 640, height: int = 480) -> list[Frame]:
    colors = np.linspace(40, 220, count).astype(np.uint8)
    images = [np.full((height, width, 3), color, np.uint8) for color in colors]
    return [Frame(image=image, stamp_ns=k * 250_000_000) for k, image in enumerate(images)]


def _is_text(band: np.ndarray) -> bool:
    return bool(band.max() > 100) and bool((band < 40).mean() > 0.5)


def test_newest_frame_is_large_and_text_lies_beside_it() -> None:
    picture = draw_answer(_frames(1), "What is there?", "a wall", ["note"])

    assert picture.shape == (FRAME_HEIGHT, WIDTH, 3)
    assert picture.dtype == np.uint8
    assert (picture[:, :FRAME_WIDTH] == 40).all()
    assert _is_text(picture[:, FRAME_WIDTH:])


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (200, 400)], ids=["wide", "tall"])
def test_newest_frame_keeps_its_shape(width: int, height: int) -> None:
    picture = draw_answer(_frames(1, width, height), "What is there?", "a wall", [])

    rows, columns = ((picture == 40).all(axis=2)).nonzero()
    shown_height, shown_width = int(rows.max()) + 1, int(columns.max()) + 1
    assert shown_width / shown_height == pytest.approx(width / height, rel=0.01)
    assert shown_width == FRAME_WIDTH or shown_height == FRAME_HEIGHT


def test_clip_shows_all_its_frames() -> None:
    picture = draw_answer(_frames(8), "Which way?", "left", [])

    strip = picture[FRAME_HEIGHT + 20]
    shown = {int(value) for value in np.unique(strip)}
    assert {int(frame.image[0, 0, 0]) for frame in _frames(8)} <= shown


@pytest.mark.parametrize("text", ["word " * 100, "x" * 600], ids=["words", "one_word"])
def test_long_text_stays_inside(text: str) -> None:
    short = draw_answer(_frames(1), "short", "a", [])
    long = draw_answer(_frames(1), text, "a", [])

    assert long.shape[0] > short.shape[0] + 100
    assert (long[:, WIDTH - 8 :] < 40).all()
    assert (long[FRAME_HEIGHT:, :FRAME_WIDTH] < 40).all()


@pytest.mark.parametrize("text", ["", "\u00fc\u4e2d", "line\nbreak"])
def test_any_text_can_be_drawn(text: str) -> None:
    assert draw_answer(_frames(2, 30, 500), text, text, [text]).shape[1] == WIDTH


def test_picture_is_written_and_read_back(tmp_path: Path) -> None:
    picture = draw_answer(_frames(2), "Which way?", "left", ["note"])

    save_picture(tmp_path / "answer.png", picture)

    assert np.array_equal(cv2.imread(str(tmp_path / "answer.png"))[..., ::-1], picture)


@pytest.mark.parametrize("name", ["answer.unknown", "none/answer.png"])
def test_picture_that_cannot_be_written_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(FrameError, match="cannot be written"):
        save_picture(tmp_path / name, draw_answer(_frames(1), "?", "!", []))
