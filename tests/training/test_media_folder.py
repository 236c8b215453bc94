"""A data set shows a model what lies in its media folder, and nothing else of whoever runs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nvila_ros.tools.cli import main
from nvila_ros.training.conversations.bad_samples import SampleError
from nvila_ros.training.conversations.samples import Sample, parse_record


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with a picture and a film, a private picture beside it, and links from inside to there."""
    folder, private = tmp_path / "media", tmp_path / "private"
    (folder / "film").mkdir(parents=True)
    (folder / "leaky film").mkdir()
    private.mkdir()
    for path in (folder / "a.png", folder / "film" / "0.png", folder / "leaky film" / "0.png", private / "a.png"):
        assert cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    (folder / "link.png").symlink_to(private / "a.png")
    (folder / "link").symlink_to(private)
    (folder / "leaky film" / "1.png").symlink_to(private / "a.png")
    (folder / "inner.png").symlink_to(folder / "a.png")
    return folder


def parse(media: Path, *, allow_outside: bool = False, **fields: Any) -> Sample:
    record = {"question": "What?", "answer": "a"} | fields
    return parse_record(record, "record 1", media, "set", allow_outside=allow_outside)


def outside(media: Path) -> list[dict[str, str]]:
    return [
        {"image": "../private/a.png"},
        {"image": "film/../../private/a.png"},
        {"image": str(media.parent / "private" / "a.png")},
        {"image": str(media / "a.png")},
        {"image": "link.png"},
        {"image": "link/a.png"},
        {"image": "link/none.png"},
        {"video": ".."},
        {"video": "link"},
        {"video": "leaky film"},
        {"bag": "../private/a.mcap"},
        {"bag": "/a.mcap"},
    ]


@pytest.mark.parametrize("number", range(12))
def test_media_outside_of_the_folder_are_refused_unless_allowed(media: Path, number: int) -> None:
    fields = outside(media)[number]

    with pytest.raises(
        SampleError, match=r"^record 1: media must lie in the media folder .* --allow-outside$"
    ) as error:
        parse(media, **fields)

    assert error.value.reason == "outside_media"
    assert parse(media, allow_outside=True, **fields).turns[0].media


@pytest.mark.parametrize(
    "fields",
    [{"image": "a.png"}, {"image": "film/../a.png"}, {"image": "./a.png"}, {"image": "inner.png"}, {"video": "film"}],
)
def test_media_inside_are_read_also_by_way_of_a_link_to_the_folder(media: Path, fields: dict[str, str]) -> None:
    (media.parent / "elsewhere").symlink_to(media)

    for folder in (media, media.parent / "elsewhere"):
        images = parse(folder, **fields).turns[0].media[0].read(8)
        assert len(images) == (8 if "video" in fields else 1)  # a clip shows its one frame in each place


def test_folder_of_the_working_directory_is_a_fence_too(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(media)

    assert parse(Path("."), image="a.png").turns[0].media[0].read(1)
    with pytest.raises(SampleError, match="must lie in the media folder"):
        parse(Path("."), image="../private/a.png")


def test_the_verb_refuses_and_allows(media: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = media.parent / "set.jsonl"
    data.write_text(json.dumps({"image": "link.png", "question": "What?", "answer": "a"}) + "\n")
    command = ["eval", "nvila-tiny", str(data), "--media", str(media), "--backend", "onnxruntime", "--json"]

    assert main(command) == 2
    assert "--allow-outside" in capsys.readouterr().err
    assert main([*command, "--allow-outside"]) == 0
    assert json.loads(capsys.readouterr().out)["asked"] == 1
