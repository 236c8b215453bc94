"""`nvila demo` as a user runs it: all real, in processes of their own, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import cv2
import pytest

pytest.importorskip("rclpy")
pytest.importorskip("nvila_ros.msg")

from nvila_ros.errors import CheckpointError
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.demo.questions import QUIZ

try:
    find_checkpoint("nvila-tiny")
except CheckpointError as missing:
    pytest.skip(str(missing), allow_module_level=True)

pytestmark = pytest.mark.ros
ROOT = Path(__file__).parents[3]


def start(folder: Path, *argv: str) -> subprocess.Popen[str]:
    path = (str(ROOT), os.environ.get("PYTHONPATH"))  # a sourced workspace is found by it
    return subprocess.Popen(
        [sys.executable, "-m", "nvila_ros.tools.cli", "demo", "--threads", "1", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_interrupts,
    )


def heed_interrupts() -> None:
    """A shell lets what it runs in the background ignore SIGINT, and whatever that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def programs_of(folder: Path) -> list[str]:
    """Processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink() == folder:
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is not ours
            continue
    return found


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_demo_asks_everything_and_shows_it(tmp_path: Path) -> None:
    out, err = start(tmp_path).communicate(timeout=220)
    assert "error" not in err, err

    summary = json.loads(out.splitlines()[-1])
    num_asked = sum(map(len, QUIZ))
    assert list(summary) == ["answers", "correct", "asked", "ttft_s_median", "frames_dropped"], err
    assert (summary["answers"], summary["asked"]) == (num_asked, num_asked)
    assert 0 <= summary["correct"] <= num_asked
    assert 0 < summary["ttft_s_median"] < 60
    assert all(title in out for title in ("world 640x480", "world 1280x720", "video file 640x480", "picture: "))
    picture = cv2.imread(str(tmp_path / "nvila_demo.png"))
    assert picture is not None
    assert picture.std() > 10
    assert [path.name for path in tmp_path.glob("nvila*")] == ["nvila_demo.png"]
    assert programs_of(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_interrupted_demo_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    demo = start(tmp_path)
    end_s = time.monotonic() + 60
    while not any("nvila_ros.ros.node" in program for program in programs_of(tmp_path)) and time.monotonic() < end_s:
        time.sleep(0.1)
    time.sleep(1.0)

    demo.send_signal(number)
    _, err = demo.communicate(timeout=60)

    assert demo.returncode == code
    assert "Traceback" not in err
    assert programs_of(tmp_path) == []
    assert list(tmp_path.glob("nvila*")) == []


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_web_goes_on_with_a_page_until_interrupted(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    demo = start(tmp_path, "--web", "--port", str(port))
    assert demo.stdout is not None
    line = next((line for line in demo.stdout if "open http" in line), "")
    url = f"http://127.0.0.1:{port}"
    assert url in line
    with urllib.request.urlopen(f"{url}/api/state", timeout=30) as response:
        assert [camera["name"] for camera in json.load(response)["cameras"] if camera["newest_ns"]] == ["front", "rear"]

    demo.send_signal(signal.SIGINT)
    demo.communicate(timeout=60)

    assert demo.returncode == 130
    assert programs_of(tmp_path) == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("--checkpoint", "/nowhere"), "no checkpoint at '/nowhere'"),
        (("--out", "none/picture.png"), "in a folder that exists"),
        (("--out", "picture.txt"), "--out must be a file .png or .jpg"),
    ],
)
def test_bad_input_starts_nothing(tmp_path: Path, argv: tuple[str, ...], text: str) -> None:
    demo = start(tmp_path, *argv)
    out, err = demo.communicate(timeout=100)

    assert (demo.returncode, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert text in err


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_node_that_fails_is_shown_with_its_log(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")

    demo = start(tmp_path, "--checkpoint", str(broken))
    _, err = demo.communicate(timeout=100)

    assert (demo.returncode, programs_of(tmp_path)) == (1, [])
    assert "nvila_node ended with code 2; its log ends with" in err
    assert "nvila_node: error: " in err
