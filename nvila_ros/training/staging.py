"""Files that are whole or not there at all, and a full disk told as what it is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nvila_ros.errors import ConfigError


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """Give a file to write to, which takes its place at the end; what fails leaves nothing behind.

    Raises:
        ConfigError: it cannot be written, such as where the disk is full.
    """
    part = path.with_name(f".part-{os.getpid()}-{path.name}")
    try:
        with told_if_full(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def told_if_full(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that cannot be written into an error that says what to do.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror or error}; make room, then run again: what was finished is kept"
        ) from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder as long as this lasts, however it ends.

    Raises:
        ConfigError: another run is at work there.
    """
    with told_if_full(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"another run is at work in {folder}; wait for it, or choose another folder") from error
        yield
