"""`nvila serve` as a process of its own."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.served import served_process
from nvila_ros.errors import FrameError
from nvila_ros.http.services import TOKEN_VARIABLE
from nvila_ros.tools.cli import main
from nvila_ros.tools.live_sources import open_source
from nvila_ros.video.buffer import FrameBuffer
from tests.http.serving import scene, wait_until

pytestmark = pytest.mark.slow


def get(url: str) -> Any:
    with urllib.request.urlopen(url) as response:
        return json.load(response)


def test_two_cameras_are_served_and_the_process_ends_in_order(tmp_path: Path) -> None:
    Image.fromarray(scene()).save(tmp_path / "still.png")
    with served_process("front=world:3", f"door={tmp_path / 'still.png'}", "--size", "160x120") as url:
        state = get(f"{url}/api/state")
        assert [(camera["name"], camera["source"]) for camera in state["cameras"]] == [
            ("front", "world:3"),
            ("door", str(tmp_path / "still.png")),
        ]
        body = {"model": "live", "messages": [{"role": "user", "content": "What do you see?"}]}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        answer = get(request)  # type: ignore[arg-type]
        assert {frame["camera"] for frame in answer["nvila"]["frames"]} == {"front", "door"}


REFUSALS = [
    (("world", "--host", "0.0.0.0"), "http_host must be a loopback address"),
    (("nowhere.mp4",), "no file or folder at"),
    (("a=world", "a=world"), "cameras must have different names"),
    (("world", "--set", "num_frames=0"), "num_frames must lie in [1, 256]"),
    (("world", "--set", "frames=1"), "unknown parameter 'frames'"),
    (("world", "--model", "nothing"), "nothing"),
]


@pytest.mark.parametrize(("arguments", "rule"), REFUSALS)
def test_what_is_not_acceptable_ends_with_2_and_one_line(
    arguments: tuple[str, ...], rule: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    code = main(["serve", *arguments, "--port", "0"])
    for number, handler in handlers.items():
        signal.signal(number, handler)
    said = capsys.readouterr().err

    assert code == 2
    assert said.startswith("nvila serve: error: ")
    assert rule in said
    assert len(said.splitlines()) == 1


def test_pictures_are_shown_in_a_loop_true_to_time(tmp_path: Path) -> None:
    for index in range(3):
        Image.fromarray(np.full((4, 6, 3), 80 * index, np.uint8)).save(tmp_path / f"{index}.png")
    source = open_source("camera", str(tmp_path), size=(16, 16), rate_hz=1.0)
    buffer: FrameBuffer[Any] = FrameBuffer(10.0, 1 << 20)
    source.start(buffer)
    wait_until(lambda: source.state().received > 12, "several rounds are shown")
    source.stop()
    frames = buffer.window(["camera"], 0, 1 << 62)[0]
    values = [int(frame.image.data[0]) for frame in frames]

    assert set(values) == {0, 80, 160}
    assert source.state().rate_hz >= 0


def test_a_webcam_that_is_not_there_is_a_warning_and_is_tried_again() -> None:
    source = open_source("camera", "97", size=(16, 16), rate_hz=1.0)
    source.start(FrameBuffer(10.0, 1 << 20))
    wait_until(lambda: "camera 97 gives no frame" in source.state().warning, "it says so")
    source.stop()


def test_a_source_that_is_nothing_is_refused() -> None:
    with pytest.raises(FrameError, match="no file or folder"):
        open_source("camera", "nowhere", size=(16, 16), rate_hz=1.0)
