"""Records become samples, or are refused with the reason; media lead the turn in which their tags stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nvila_ros.training.conversations.bad_samples import REASONS, SampleError
from nvila_ros.training.conversations.record_media import IMAGE, VIDEO, FileMedium, read_medium
from nvila_ros.training.conversations.samples import Sample, parse_record, right_answers

MEDIA = Path("/media")
PICTURE, OTHER, FILM = (
    FileMedium(IMAGE, MEDIA / "a.png"),
    FileMedium(IMAGE, MEDIA / "b.png"),
    FileMedium(VIDEO, MEDIA / "c.mp4"),
)


def record(*said: str, **fields: Any) -> dict[str, Any]:
    senders = ("human", "gpt")
    conversations = [{"from": senders[i % 2], "value": text} for i, text in enumerate(said)]
    return {"id": 1, "conversations": conversations} | fields


def parse(told: Any) -> Sample:
    return parse_record(told, "set.json, record 1", MEDIA, "set")


@pytest.mark.parametrize(
    ("told", "parts"),
    [
        (record("<image>\nWhat?", "a", image="a.png"), [(PICTURE, "What?")]),
        (record("What?\n<image>", "a", image="a.png"), [(PICTURE, "What?")]),
        (record("What?\n<image>\n", "a", image="a.png"), [(PICTURE, "What?")]),
        (record("What? <image>", "a", image="a.png"), [(PICTURE, "What? ")]),
        (record("Is <image> red?", "a", image="a.png"), [(PICTURE, "Is  red?")]),
        (record("Which?\n<image>\n<image>", "a", image=["a.png", "b.png"]), [(PICTURE, OTHER, "Which?")]),
        (record("\n<image>\nWhat?", "a", image="a.png"), [(PICTURE, "What?")]),
        (record("<image>\nWhat?", "a", images=["a.png"]), [(PICTURE, "What?")]),
        (record("What?", "a", image="a.png", images=["b.png"]), [(PICTURE, OTHER, "What?")]),
        (record("<video>\nWhat?", "a", videos="c.mp4"), [(FILM, "What?")]),
        (record("<image>\n\nWhat?", "a", image=["a.png"]), [(PICTURE, "\nWhat?")]),
        (record("<image>\n<image>\nWhat?", "a", image=["a.png", "b.png"]), [(PICTURE, OTHER, "What?")]),
        (record("<video>\nWhat?", "a", video="c.mp4"), [(FILM, "What?")]),
        (record("<vila/video>What?", "a", video="c.mp4"), [(FILM, "What?")]),
        (record("<image>\nWhat?", "a", video="c.mp4"), [(FILM, "What?")]),
        (record("What?", "a", "Why?\n<video>", "b", video="c.mp4"), [("What?",), (FILM, "Why?")]),
        (
            record("<video> What?", "a", "<image> Why?", "b", video="c.mp4", image="a.png"),
            [(FILM, " What?"), (PICTURE, " Why?")],
        ),
        (record("What?", "a", "Why?", "b"), [("What?",), ("Why?",)]),
        (record("What?", "a", "<image>\nAnd?", "b", image="a.png"), [("What?",), (PICTURE, "And?")]),
        (record("<image>\n", "a", image="a.png"), [(PICTURE,)]),
    ],
)
def test_media_lead_the_turn_of_their_tags(told: dict[str, Any], parts: list[tuple[object, ...]]) -> None:
    sample = parse(told)

    assert [turn.parts for turn in sample.turns] == parts
    assert [turn.answer for turn in sample.turns] == ["a", "b"][: len(parts)]
    assert sample.group == "set"


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ([], "malformed"),
        ({"id": 1}, "malformed"),
        ({"conversations": ["hello"]}, "malformed"),
        ({"conversations": [{"from": "human", "value": 3}]}, "malformed"),
        (record("What?", "a", image={"path": "a.png"}), "malformed"),
        (record("What?", "a", image=[""]), "malformed"),
        ({"conversations": [{"from": "robot", "value": "hi"}]}, "unknown_role"),
        ({"conversations": [{"from": ["human"], "value": "hi"}]}, "unknown_role"),
        ({"conversations": [{"from": "system", "value": "hi"}]}, "unknown_role"),
        (record(), "turn_order"),
        (record("What?"), "turn_order"),
        (record("What?", "a", "And?"), "turn_order"),
        ({"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}, "turn_order"),
        (record("What?", " \n"), "empty_answer"),
        (record(" ", "a"), "empty_question"),
        (record("<image>", "a"), "media_count"),
        (record("<image>\n<image>\nWhat?", "a", image="a.png"), "media_count"),
        (record("<image>\nWhat?", "a", image=["a.png", "b.png"]), "media_count"),
        (record("<video>\nWhat?", "a", image="a.png"), "media_count"),
        (record("What?", "<image>"), "media_count"),
        (record("See <image> and <image>", "a", image=["a.png", "b.png"]), "media_order"),
        (record("<image> and <image>: which?", "a", image=["a.png", "b.png"]), "media_order"),
        (record("<video> or <image>", "a", image="a.png", video="c.mp4"), "media_order"),
        (record("<video><image>\nWhat?", "a", image="a.png", video="c.mp4"), "media_order"),
        (record("What?", "a", image="a.png", video="c.mp4"), "media_order"),
        (record("What?", "a", images=[3]), "malformed"),
    ],
)
def test_bad_record_is_refused_with_the_reason(told: Any, reason: str) -> None:
    with pytest.raises(SampleError, match=r"^set\.json, record 1: ") as refused:
        parse(told)

    assert refused.value.reason == reason
    assert reason in REASONS


@pytest.mark.parametrize(
    "key",
    ["image_path", "video_path", "image_paths", "img", "picture", "photo_file", "imageUrl", "video_name", "audio"],
)
def test_media_under_a_key_that_is_not_read_are_no_question_without_media(key: str) -> None:
    with pytest.raises(SampleError, match=f"{key} is not read.* rename it to one of image, images, video, videos, bag"):
        parse(record("What?", "a", **{key: ["a.png"]}))

    assert parse(record("What?", "a", image="a.png", **{key: ["a.png"]})).turns[0].parts == (PICTURE, "What?")


@pytest.mark.parametrize(
    "fields", [{"image_id": "7"}, {"media_type": "text"}, {"image_path": None}, {"video": []}, {"image_size": [3, 4]}]
)
def test_record_without_media_is_text_whatever_else_it_says(fields: dict[str, Any]) -> None:
    assert parse(record("What?", "a", **fields)).turns[0].parts == ("What?",)


def test_blank_texts_among_the_right_answers_are_none() -> None:
    assert right_answers({"answers": ["cat", "", " "]}) == ["cat"]
    assert right_answers({"answers": ["", " "]}) == ["", " "]


def test_name_that_no_file_can_have_is_a_bad_sample(tmp_path: Path) -> None:
    inline = "data:image/png;base64," + "A" * 5000
    sample = parse_record({"image": inline, "question": "What?", "answer": "a"}, "set, record 1", tmp_path, "set")

    (medium,) = (part for part in sample.turns[0].parts if not isinstance(part, str))
    with pytest.raises(SampleError, match=r"set, record 1: image .*: ") as refused:
        read_medium(medium, 1, sample.name)
    assert refused.value.reason == "unreadable_media"
    assert len(str(refused.value)) < 600


def test_missing_and_unreadable_media_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    (tmp_path / "c.mp4").write_bytes(b"no film")
    expected = {"a.png": "unreadable_media", "c.mp4": "unreadable_media", "none.png": "missing_media"}

    for name, reason in expected.items():
        medium = FileMedium(VIDEO if name.endswith("mp4") else IMAGE, tmp_path / name)
        with pytest.raises(SampleError, match=name) as refused:
            read_medium(medium, 4, "record 1")
        assert refused.value.reason == reason
