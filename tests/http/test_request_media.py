"""Pictures, videos and texts that a request brings along: read as they are meant, and bounded."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nvila_ros import load, read_clip
from nvila_ros.world.frame_source import film_world
from tests.http.serving import Served, data_uri, scene


def said(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


def content_of(answer: Any) -> Any:
    return answer["choices"][0]["message"]["content"]


def test_a_video_is_shown_as_a_clip(tiny: Served, tmp_path: Path) -> None:
    film_world(tmp_path / "film.mp4", 0, 160, 120, fps=10)
    content = (tmp_path / "film.mp4").read_bytes()
    url = f"data:video/mp4;base64,{base64.b64encode(content).decode()}"
    text = {"type": "text", "text": "Where does it move?"}
    status, answer = tiny.ask([text, {"type": "video_url", "video_url": {"url": url, "frames": 16}}])
    with load("nvila-tiny") as model:
        expected = model.ask("Where does it move?", read_clip(tmp_path / "film.mp4", num_frames=16))

    assert (status, content_of(answer)) == (200, expected.text)
    assert answer["usage"]["prompt_tokens"] == expected.counts.num_prompt_tokens
    assert len(answer["nvila"]["frames"]) == 16
    assert answer["nvila"]["age_s"] is None


def test_a_video_too_long_is_400(tiny: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nvila_ros.http.media_parts.MAX_VIDEO_FRAMES", 10)
    film_world(tmp_path / "film.mp4", 0, 160, 120, fps=2)
    url = f"data:video/mp4;base64,{base64.b64encode((tmp_path / 'film.mp4').read_bytes()).decode()}"
    status, error = tiny.ask([{"type": "text", "text": "x"}, {"type": "video_url", "video_url": {"url": url}}])

    assert status == 400
    assert "at most 10 frames, got 16" in error["error"]["message"]


@pytest.mark.parametrize(
    "spoil", [lambda text: text.replace("+", "-").replace("/", "_"), lambda text: text.rstrip("=")]
)
def test_other_spellings_of_base64_are_read(tiny: Served, spoil: Callable[[str], str]) -> None:
    head, _, data = data_uri(scene()).partition(",")
    text = {"type": "text", "text": "What do you see?"}
    plain = tiny.ask([text, {"type": "image_url", "image_url": f"{head},{data}"}])[1]
    lines = "\n".join(spoil(data)[k : k + 76] for k in range(0, len(data), 76))
    status, answer = tiny.ask([text, {"type": "image_url", "image_url": f"{head},{lines}"}])

    assert (status, content_of(answer)) == (200, content_of(plain))


def test_a_damaged_picture_is_400(tiny: Served) -> None:
    whole = base64.b64decode(data_uri(scene(), "jpeg").partition(",")[2])
    cut = whole[: len(whole) * 2 // 3] + b"\xff\xd9"
    url = f"data:image/jpeg;base64,{base64.b64encode(cut).decode()}"
    status, error = tiny.ask([{"type": "text", "text": "x"}, {"type": "image_url", "image_url": url}])

    assert (status, error["error"]["type"]) == (400, "invalid_request_error")
    assert "images[0]" in error["error"]["message"]


def test_a_system_message_is_told_to_the_model(tiny: Served) -> None:
    asked = said("What is this?")
    told = [{"role": "system", "content": "You are a helpful assistant"}, *asked]
    other = [{"role": "system", "content": "You count things and say nothing else at all"}, *asked]
    answers = [tiny.request("POST", "/v1/chat/completions", {"messages": each})[1] for each in (asked, told, other)]
    counts = [answer["usage"]["prompt_tokens"] for answer in answers]

    assert counts[0] == counts[1] < counts[2]
    assert content_of(answers[0]) == content_of(answers[1])


def test_too_much_text_is_400(tiny: Served) -> None:
    long = [{"role": "system", "content": "x" * 5000}, {"role": "user", "content": "x"}]
    many = [{"role": role, "content": "y" * 9000} for role in ("user", "assistant") * 20] + said("x")
    for messages, rule in ((long, "max_question_bytes"), (many, "262144 bytes of text")):
        status, error, _ = tiny.request("POST", "/v1/chat/completions", {"messages": messages})
        assert status == 400
        assert rule in error["error"]["message"]
