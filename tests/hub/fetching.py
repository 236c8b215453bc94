"""Fetches from a local hub into a folder, and what must hold of the folder afterwards."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nvila_ros.errors import CheckpointError
from nvila_ros.hub.client import HubClient
from nvila_ros.hub.fetch import fetch, plan_fetch
from nvila_ros.hub.files import HubFile
from nvila_ros.hub.local import read_source
from nvila_ros.hub.published import HubSource
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.tools.fetch import judge
from tests.hub.local_hub import LocalHub, folder_files

BIG = "mm_projector/model.safetensors"
NOT_FETCHED = {"trainer_state.json", "modeling.py", "optimizer.bin"}


class Waits(threading.Event):
    """Writes down how long it would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        return self.is_set()


def run(
    hub: LocalHub,
    folder: Path,
    waits: Waits | None = None,
    on_bytes: Callable[[HubFile, int], None] | None = None,
    judge: Callable[[Path], None] = judge,
) -> int:
    """Fetch into a folder, and return the bytes that were moved."""
    client = HubClient(hub.url, os.environ.get("HF_TOKEN", ""), timeout_s=1.0, stopped=waits or Waits())
    plan = plan_fetch(client, HubSource(hub.repo), folder)
    return fetch(client, plan, folder, judge, on_bytes or (lambda *_: None), jobs=2)


def check_whole(hub: LocalHub, folder: Path) -> None:
    """The folder has the repository's files, no more, and is loaded."""
    wanted = {path: data for path, data in hub.files.items() if path not in NOT_FETCHED}
    found = folder_files(folder)
    assert {path: data for path, data in found.items() if path not in ("nvila_source.json", ".lock")} == wanted
    source = read_source(folder)
    assert source is not None
    assert (source.repo, source.commit) == (hub.repo, hub.commit)
    assert source.find_faults(folder, lambda *_: None) == []
    assert open_checkpoint(folder).load()


def check_refused(folder: Path) -> None:
    """Nothing loads a folder that is not whole."""
    if folder.exists():
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)
        assert read_source(folder) is None
