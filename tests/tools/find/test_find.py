"""`nvila find` on recordings of the synthetic world, in which a thing is there for a known time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nvila_ros.tools.cli import main
from nvila_ros.tools.find.search import split_windows
from nvila_ros.world.rendering import render
from nvila_ros.world.scene import COLORS, Object, scene_rng
from nvila_ros.world.scene_sampler import sample_scene
from tests.video.bag_files import T0_NS, image, text, write_bag

pytestmark = pytest.mark.slow  # asks nvila-tiny about every window

NUM, FIRST, LAST = 24, 9, 14  # frames at 2 Hz; a red circle is there in these
EVENT = "Is there a red circle?"


def pictures() -> list[np.ndarray]:
    scene = sample_scene(scene_rng(1), aspect=4 / 3, duration_s=0.0, is_moving=False)
    there = Object("circle", "red", COLORS["red"], 0.19, 0.5, 0.5, 0.0, 0.0, 0.0)
    return [render(replace(scene, objects=(there,) if FIRST <= k <= LAST else ()), 0.0, 224, 168) for k in range(NUM)]


def find(*args: object) -> int:
    return main(["find", *map(str, args), "--window", "0.9", "--frames", "2", "--threads", "1"])


def test_event_in_a_bag_is_found_with_the_offset_to_play_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stamps = [T0_NS + k * 500_000_000 for k in range(NUM)]
    frames = [image(rgb, stamp) for rgb, stamp in zip(pictures(), stamps, strict=True)]
    bag = write_bag(tmp_path / "bag", [text("earlier", T0_NS - 2_000_000_000), *frames])
    out, events, strip = (tmp_path / name for name in ("out.json", "events.json", "strip.png"))

    assert find(bag, EVENT, "--out", out, "--events", events, "--strip", strip) == 0

    told = json.loads(out.read_text())
    (event,) = told["events"]
    assert told["method"] == "windows"
    assert abs(event["start_ns"] - stamps[FIRST]) <= 500_000_000
    assert abs(event["end_ns"] - stamps[LAST]) <= 1_000_000_000
    assert event["start_offset_s"] == pytest.approx(2.005 + event["start_s"], abs=1e-6)
    assert f"--start-offset {event['start_offset_s']:.3f}" in capsys.readouterr().out
    assert len(told["windows"]) == NUM / 2
    (shown,) = json.loads(events.read_text())
    assert shown["start"]["sec"] * 10**9 + shown["start"]["nsec"] == event["start_ns"]
    assert shown["metadata"]["event"] == EVENT
    with Image.open(strip) as picture:
        assert picture.size[0] == 1200


def test_nothing_found_is_exit_code_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k, rgb in enumerate(pictures()[:FIRST]):
        Image.fromarray(rgb).save(tmp_path / f"{k}.png")

    assert find(tmp_path, EVENT, "--fps", "2", "--json") == 1

    told = json.loads(capsys.readouterr().out)
    assert told["events"] == []
    assert max(window["probability"] for window in told["windows"]) < 0.5


def test_what_goes_on_to_the_end_is_one_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = pictures()[FIRST : LAST + 1]
    for k, rgb in enumerate(shown):
        Image.fromarray(rgb).save(tmp_path / f"{k}.png")

    assert find(tmp_path, EVENT, "--fps", "2", "--json") == 0

    (event,) = json.loads(capsys.readouterr().out)["events"]
    assert (event["start_s"], event["end_s"]) == (0.0, (len(shown) - 1) / 2)


@given(st.lists(st.integers(1, 3_000_000_000), max_size=40), st.floats(0.1, 5))
def test_windows_hold_every_frame_once(gaps: list[int], window_s: float) -> None:
    stamps_ns = np.cumsum([7, *gaps])

    windows = list(split_windows(stamps_ns, window_s))

    assert [i for first, last in windows for i in range(first, last + 1)] == list(range(len(stamps_ns)))
    assert all(stamps_ns[last] - stamps_ns[first] < window_s * 1e9 + 1 for first, last in windows)
