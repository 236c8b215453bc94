"""Every curl command of docs/http.md does what it is documented for, and what it says of JSON is true."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nvila_ros.http.limits import NUM_KEPT
from tests.http.serving import Served, scene

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "http.md").read_text()
CURL = [text.replace("\\\n", " ") for text in re.findall(r"^curl .*?(?=^\n|^```)", PAGE, re.DOTALL | re.MULTILINE)]
SHOWN = [json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)]


def keys(value: Any) -> Any:
    """Return the keys of an object and those in it; those that are left out by "..." are."""
    if isinstance(value, dict):
        return {key: keys(each) for key, each in value.items() if key != "..."}
    return [keys(value[0])] if isinstance(value, list) and value and isinstance(value[0], dict) else None


def is_part(some: Any, whole: Any) -> bool:
    if isinstance(some, dict):
        return all(key in whole and is_part(each, whole[key]) for key, each in some.items())
    return some is None or not isinstance(some, list) or (bool(whole) and is_part(some[0], whole[0]))


def run(command: str, served: Served) -> str:
    for camera in served.cameras.values():  # of about the same time, as a window of two seconds needs it
        camera.show(scene())
    words = shlex.split(command.replace("http://127.0.0.1:8000", served.url))
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def test_there_are_commands_to_check() -> None:
    assert len(CURL) == 3
    assert len(SHOWN) == 2


@pytest.mark.parametrize("command", CURL)
def test_a_documented_command_is_answered(tiny: Served, command: str) -> None:
    found = run(command, tiny)
    lines = [line[6:] for line in found.splitlines() if line.startswith("data: {")] or [found]
    extras = [each["nvila"] for each in map(json.loads, lines) if "nvila" in each]

    assert "error" not in found.partition(":")[0]
    assert extras[-1]["finish_reason"] in ("STOP", "LENGTH")
    assert extras[-1]["frames"]


def test_the_shown_answer_has_the_fields_of_a_real_one(tiny: Served) -> None:
    real = json.loads(run(CURL[0], tiny))["nvila"]
    assert keys(SHOWN[0]) == keys(real)


@pytest.fixture
def standing(tiny: Served) -> Iterator[None]:
    query = {"name": "star", "question": "Is there a star?", "rate_hz": 0.1}
    assert tiny.request("POST", "/api/standing", query)[0] == 201
    yield
    tiny.request("DELETE", "/api/standing/star")


@pytest.mark.usefixtures("standing")
def test_the_shown_state_has_the_fields_of_a_real_one(tiny: Served) -> None:
    state = tiny.request("GET", "/api/state")[1]
    state["standing"][0]["frames"] = state["standing"][0]["frames"] or [{"camera": "", "stamp_ns": ""}]

    assert is_part(keys(SHOWN[1]), keys(state))
    assert keys(SHOWN[1]).keys() == keys(state).keys()
    assert keys(SHOWN[1])["cameras"] == keys(state)["cameras"]


def test_the_numbers_of_the_page_are_those_of_the_code() -> None:
    assert f"({NUM_KEPT} are kept)" in PAGE
