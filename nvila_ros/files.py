"""Files that are whole or not there at all, folders that one run has, and a full disk told as what it is."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from nvila_ros.errors import ConfigError

RUN_FILE, PART = "run.json", ".part-"


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a file to write to, which takes its place at the end; what fails leaves nothing behind.

    Raises:
        ConfigError: it cannot be written, such as where the disk is full.
    """
    part = path.with_name(f"{PART}{os.getpid()}-{path.name}")
    try:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            with part.open("rb") as file:
                os.fsync(file.fileno())  # else after a cut of the power it may be there and empty
            os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that cannot be written into an error that says what to do.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        told = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{path} cannot be written: {told}; make room, then run again: what was finished is kept"
        ) from error


def close_reporting(file: IO[Any], path: Path, *, is_failing: bool) -> None:
    """Close a file that was written to; behind a failure its buffer still holds what could not be, and is let go.

    Raises:
        ConfigError: what was left cannot be written.
    """
    with suppress(OSError) if is_failing else write_errors(path):
        file.close()


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder as long as this lasts, however it ends; what a killed one left half is removed.

    Raises:
        ConfigError: another run is at work there.
    """
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another run is at work in {folder}; wait for it, or choose another folder") from error
        for half in folder.rglob(f"{PART}*"):
            half.unlink(missing_ok=True)
        yield


def record_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Note what a folder is the run of, or see that it is the same as before.

    Raises:
        ConfigError: it is another, or the folder holds something else.
    """
    path, run = folder / RUN_FILE, json.loads(json.dumps(run))
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            known = {}
        other = sorted(name for name in {*run, *known} if run.get(name) != known.get(name))
        if other:
            name = other[0]
            raise ConfigError(
                f"{folder} holds a run with another {name}, {known.get(name)!r} and not {run.get(name)!r}; "
                "choose another folder, or go on with the same"
            )
        return
    with atomic_file(path) as part:
        part.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
