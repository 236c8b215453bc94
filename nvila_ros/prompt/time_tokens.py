"""Time tokens: ordinary rows of the vocabulary that stand for places in a clip, from its beginning to its end.

A checkpoint that has them was trained on clips of evenly spaced frames: token t of N is t / (N - 1) of the duration,
which is number of frames over frame rate and so ends a frame's period after the last frame. Frames of a robot are not
evenly spaced, so a place is a place among frames, and the frames' own stamps give its time. Source: LITA (arXiv
2403.19046), NVLabs/VILA `--num_time_tokens`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nvila_ros.errors import CheckpointError, shown
from nvila_ros.files import read_json

FORMAT = "<t{t}>"
MAX_TIME_TOKENS = 4096
SETTINGS = ("num_time_tokens", "time_token_format", "time_token_ids")
"""Keys of a checkpoint's config."""
TIMES_FILE = "time_tokens.json"
"""Beside the tokenizer of a build, which has no config."""
_NAME = re.compile(r"<t(\d{1,4})>")


def read_time_tokens(folder: Path, tokens: Mapping[str, int]) -> tuple[int, ...]:
    """Return the ids of a tokenizer's time tokens, in order; none if it has none.

    Args:
        folder: of the tokenizer's files; what the checkpoint's config says lies there or above, in a build in
            `TIMES_FILE`, or nowhere.
        tokens: ids by name.

    Raises:
        CheckpointError: the set is partial, or config and tokenizer contradict each other.
    """
    config = time_settings(folder)
    template = config.get("time_token_format") or FORMAT
    count = config.get("num_time_tokens") or _count_named(folder, tokens)
    if type(count) is not int or not 0 <= count <= MAX_TIME_TOKENS or count == 1:
        raise CheckpointError(f"num_time_tokens must be 0 or from 2 to {MAX_TIME_TOKENS}, got {shown(count)}")
    if not isinstance(template, str) or template.count("{t}") != 1:
        raise CheckpointError(f"time_token_format must hold {{t}} once, got {shown(template)}")
    names = [template.replace("{t}", str(t)) for t in range(count)]
    missing = [name for name in names if name not in tokens]
    if missing:
        raise CheckpointError(
            f"the tokenizer in {folder} must hold all {count} time tokens of its config, but lacks "
            f"{len(missing)}, first {missing[0]}; use the files of one revision"
        )
    ids = tuple(tokens[name] for name in names)
    listed = config.get("time_token_ids") or list(ids)
    if listed != list(ids):
        raise CheckpointError(
            f"time_token_ids must be those of {folder}, got {shown(listed)}; use the files of one revision"
        )
    return ids


def time_settings(folder: Path) -> dict[str, Any]:
    """Return what a config says of time tokens, as `TIMES_FILE` keeps it in a build; empty if it says nothing.

    Args:
        folder: of the tokenizer's files.
    """
    config = _find_config(folder)
    return {name: config[name] for name in SETTINGS if name in config}


def _find_config(folder: Path) -> dict[str, Any]:
    for path in (folder / TIMES_FILE, folder / "config.json", folder.parent / "config.json"):
        if path.is_file():
            try:
                config = read_json(path)
            except (OSError, ValueError):
                continue  # the checkpoint's own reader says what is wrong with it
            if isinstance(config, dict) and config.get("num_time_tokens"):
                return config
    return {}


def _count_named(folder: Path, tokens: Mapping[str, int]) -> int:
    found = {int(match[1]) for match in map(_NAME.fullmatch, tokens) if match}
    if found and found != set(range(len(found))):
        gap = min(set(range(max(found) + 1)) - found)
        raise CheckpointError(f"the tokenizer in {folder} must hold its time tokens without gaps, {gap} is one")
    return len(found) if len(found) > 1 else 0


def time_token_names(num_tokens: int) -> list[str]:
    """Return the names of time tokens, in order, where a checkpoint's config gives no other format."""
    return [FORMAT.replace("{t}", str(t)) for t in range(num_tokens)]


def places_in_clip(num_tokens: int) -> np.ndarray:
    """Return the place of each time token, (N,) from 0, the clip's beginning, to 1, its end."""
    return np.arange(num_tokens) / (num_tokens - 1)


def token_of_place(place: float, num_tokens: int) -> int:
    """Return which time token is nearest to a place of a clip, from 0."""
    return min(max(round(place * (num_tokens - 1)), 0), num_tokens - 1)


def time_of_place(place: float, stamps_ns: Sequence[int]) -> int:
    """Return the capture time at a place of a clip, between its first and its last frame.

    A frame lasts until the next; the last one as long as the one before it.
    """
    edges = [*stamps_ns, stamps_ns[-1] + (stamps_ns[-1] - stamps_ns[-2] if len(stamps_ns) > 1 else 0)]
    position = place * len(stamps_ns)
    i = min(int(position), len(stamps_ns) - 1)
    return min(round(edges[i] + (position - i) * (edges[i + 1] - edges[i])), stamps_ns[-1])
