"""Time tokens: read whole or refused, told as times of the clip, never written by a user."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nvila_ros.errors import CheckpointError
from nvila_ros.prompt.time_tokens import places_in_clip, time_of_place
from nvila_ros.prompt.tokenizer import ChatTokenizer
from tests.golden_cases import CHECKPOINT

NUM = 20
FIRST = 289  # behind the 289 rows of the tiny reference checkpoint


def write_tokenizer(root: Path, times: range = range(NUM), **config: Any) -> Path:
    """Write the reference checkpoint's tokenizer with these time tokens, and a config above it."""
    shutil.copytree(CHECKPOINT / "llm", root / "llm", ignore=shutil.ignore_patterns("model*", "config.json"))
    path = root / "llm" / "added_tokens.json"
    added = json.loads(path.read_text()) | {f"<t{t}>": FIRST + k for k, t in enumerate(times)}
    path.write_text(json.dumps(added))
    if config:
        (root / "config.json").write_text(json.dumps(config))
    return root / "llm"


@pytest.mark.parametrize(
    "config",
    [{}, {"num_time_tokens": NUM}, {"num_time_tokens": NUM, "time_token_ids": list(range(FIRST, FIRST + NUM))}],
)
def test_set_is_read_by_config_or_by_name(tmp_path: Path, config: dict[str, Any]) -> None:
    tokenizer = ChatTokenizer.from_folder(write_tokenizer(tmp_path, **config))

    assert tokenizer.time_ids == tuple(range(FIRST, FIRST + NUM))
    assert tokenizer.image_id == FIRST + NUM + 1
    assert ChatTokenizer.from_folder(CHECKPOINT / "llm").time_ids == ()


@pytest.mark.parametrize(
    ("times", "config", "rule"),
    [
        (range(NUM - 1), {"num_time_tokens": NUM}, r"must hold all 20 time tokens .* lacks 1, first <t19>"),
        (range(1, NUM), {}, r"without gaps, 0 is one"),
        (range(NUM), {"num_time_tokens": NUM, "time_token_ids": [1, 2]}, r"time_token_ids must be those of"),
        (range(NUM), {"num_time_tokens": 1}, r"num_time_tokens must be 0 or from 2"),
        (range(NUM), {"num_time_tokens": NUM, "time_token_format": "<t>"}, r"must hold \{t\} once"),
    ],
)
def test_set_that_is_not_whole_is_refused(tmp_path: Path, times: range, config: dict[str, Any], rule: str) -> None:
    with pytest.raises(CheckpointError, match=rule):
        ChatTokenizer.from_folder(write_tokenizer(tmp_path, times, **config))


def test_times_are_told_by_the_clips_stamps_and_cannot_be_written(tmp_path: Path) -> None:
    tokenizer = ChatTokenizer.from_folder(write_tokenizer(tmp_path))
    stamps_ns = [round(s * 1e9) for s in (100, 101, 104)]  # the last frame lasts as long as the one before it
    ids = [FIRST, *tokenizer.encode(" to "), FIRST + NUM - 1, *tokenizer.encode(" it rains")]

    assert tokenizer.decode(ids, stamps_ns) == "<0.00> to <4.00> it rains"
    assert tokenizer.decode(ids) == " to  it rains"
    stream = tokenizer.text_stream(stamps_ns=stamps_ns)
    assert "".join(map(stream.push, ids)) + stream.flush() == "<0.00> to <4.00> it rains"
    assert not set(tokenizer.time_ids) & set(tokenizer.encode("<t3> <t12>"))
    assert tokenizer.token_bytes(FIRST + NUM)[FIRST:] == [b""] * NUM  # no grammar allows them


@given(st.integers(2, 40), st.integers(1, 1000), st.integers(2, 100))
def test_even_frames_are_told_as_in_training(num_frames: int, period_ms: int, num_tokens: int) -> None:
    stamps_ns = [7 + k * period_ms * 1_000_000 for k in range(num_frames)]
    duration_ns = num_frames * period_ms * 1_000_000  # frames over rate, not last less first

    for place in places_in_clip(num_tokens):
        want = min(stamps_ns[0] + place * duration_ns, stamps_ns[-1])
        assert abs(time_of_place(float(place), stamps_ns) - want) <= 1


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=20), st.floats(0, 1), st.floats(0, 1))
def test_places_keep_their_order_among_uneven_frames(gaps: list[int], one: float, other: float) -> None:
    stamps_ns = np.cumsum(gaps).tolist()
    low, high = sorted((one, other))

    times = [time_of_place(place, stamps_ns) for place in (low, high)]

    assert stamps_ns[0] <= times[0] <= times[1] <= stamps_ns[-1]
    for k, stamp_ns in enumerate(stamps_ns):
        assert abs(time_of_place(k / len(stamps_ns), stamps_ns) - stamp_ns) <= max(gaps) * 1e-6 + 1
