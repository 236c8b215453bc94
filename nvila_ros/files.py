"""Reading and writing files safely: bounded reads, atomic writes, folders that one process has, full disks by name."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

import yaml
from safetensors import SafetensorError

from nvila_ros.errors import ConfigError

RUN_FILE, PART = "run.json", ".part-"
MAX_JSON_BYTES = 64 << 20
"""A published tokenizer.json takes 11 MB, a config at most 0.3 MB."""
MAX_YAML_BYTES = 1 << 20
MAX_YAML_DEPTH = 64
MAX_SECRET_BYTES = 4096
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room, then run again: what was finished is kept"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a folder that this user may write to"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR), "choose another folder"),
}
_log = logging.getLogger(__name__)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a regular file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is a device, pipe or folder, or larger than `max_bytes`.
    """
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"it must have at most {max_bytes:,} bytes and has more")
    return data


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to read its bytes: others may have no end, or nobody who writes to them.

    Raises:
        OSError: it cannot be read.
        ValueError: it is a device, pipe or folder.
    """
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 - the caller closes it
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise ValueError("it must be a regular file, not a device, pipe or folder")


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; of a pipe, without waiting for one who writes to it."""
    return os.open(path, flags | os.O_NONBLOCK)


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Return the value that a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, no regular file, not UTF-8, not JSON or nested too deeply.
    """
    try:
        return json.loads(read_bounded(path, max_bytes).decode())
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def read_yaml(path: Path, max_bytes: int = MAX_YAML_BYTES) -> Any:
    """Return the value that a YAML file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too large, no regular file, not UTF-8, not YAML, nested too deeply, or has an alias.
    """
    return parse_yaml(read_bounded(path, max_bytes).decode())


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        ValueError: it is not YAML, nested too deeply, or has an alias.
    """
    try:
        _check_events(text)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _check_events(text: str) -> None:
    """Refuse what makes a small text a large value: deep nesting, and aliases of values that hold aliases."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {line} has an alias; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            raise ValueError(f"line {line} is nested deeper than {MAX_YAML_DEPTH} levels")


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a file to write to, which replaces `path` at the end; after a failure, nothing is left of it.

    Raises:
        ConfigError: it cannot be written, such as where the disk is full.
    """
    part = path.with_name(f"{PART}{os.getpid()}-{path.name}")
    try:
        with write_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            _sync(part)  # else after a power cut the file may be there and empty
            os.replace(part, path)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to write to, which replaces `path` at the end; after a failure, `path` is as it was.

    One process at a time may write to `path`. What one leaves that is killed, the next puts right.

    Raises:
        ConfigError: it cannot be written, such as where the disk is full.
    """
    part, old = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.old")
    try:
        with write_errors(path):
            if old.exists() and not path.exists():
                old.rename(path)  # killed while the folders changed places
            for left in (part, old):
                shutil.rmtree(left, ignore_errors=True)
            part.mkdir(parents=True)
            yield part
            sync_tree(part)
            _replace_folder(path, part, old)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _replace_folder(path: Path, part: Path, old: Path) -> None:
    if path.exists():
        path.rename(old)
    try:
        part.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Wait until a folder, its folders and their files are on the disk; else a power cut may leave them empty."""
    for root, _, names in os.walk(folder):
        for name in names:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file, or leave it as it was.

    Raises:
        ConfigError: it cannot be written.
    """
    with atomic_file(path) as part, part.open("wb") as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, or leave it as it was.

    Raises:
        ConfigError: it cannot be written.
    """
    write_atomic(path, f"{json.dumps(value, indent=1)}\n".encode())


def check_utf8(path: Path) -> None:
    """Refuse a path that libraries in C++ cannot be given.

    Raises:
        ConfigError: its bytes are not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"the path {str(path)!r} must be UTF-8, and is not; rename it") from error


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn the system's error about a file that cannot be written into one that says what to do.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        text = getattr(error, "strerror", None) or str(error)
        remedy = _REMEDIES.get(_number(error) or 0, "see whether its folder can be written to, then run again")
        raise ConfigError(f"{path} cannot be written: {text}; {remedy}") from error


def _number(error: OSError | SafetensorError) -> int | None:
    """Return the system's number of an error; safetensors has it in the text alone."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def close_reporting(file: IO[Any], path: Path, *, is_failing: bool) -> None:
    """Close a file that was written to; after a failure its buffer holds what could not be written and is dropped.

    Raises:
        ConfigError: the rest of the buffer cannot be written.
    """
    with suppress(OSError) if is_failing else write_errors(path):
        file.close()


@contextmanager
def exclusive_lock(folder: Path, *, work: str = "run", is_inside: bool = True, waits: bool = False) -> Iterator[None]:
    """Keep other processes out of a folder while this lasts, and remove partial files of a process that was killed.

    Args:
        folder: made where it is missing, unless the lock lies beside it.
        work: what is done in it, for messages.
        is_inside: the lock lies in the folder as `.lock`; else beside it, where every file in it is accounted for.
        waits: wait for another's end instead of failing.

    Raises:
        ConfigError: another process is at work there, or the folder cannot be written to.
    """
    path = folder / ".lock" if is_inside else folder.parent / f".{folder.name}.lock"
    with write_errors(folder):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    with lock:
        _take(lock, f"another {work} is at work in {folder}", waits)
        for partial in folder.rglob(f"{PART}*"):
            partial.unlink(missing_ok=True)
        yield


def _take(lock: IO[str], reason: str, waits: bool) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if not waits:
            raise ConfigError(f"{reason}; wait for it, or choose another folder") from error
        _log.info("%s: waiting for its end", reason)
        fcntl.flock(lock, fcntl.LOCK_EX)


def record_run(folder: Path, run: Mapping[str, Any]) -> None:
    """Record the settings of a folder's run, or check that they are those recorded before.

    Raises:
        ConfigError: they differ, or the folder holds something else.
    """
    path, run = folder / RUN_FILE, json.loads(json.dumps(run))
    if not path.is_file():
        write_json(path, run)
        return
    try:
        known = read_json(path)
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    other = sorted(name for name in {*run, *known} if run.get(name) != known.get(name))
    if other:
        name = other[0]
        raise ConfigError(
            f"{folder} holds a run with another {name}, {known.get(name)!r} and not {run.get(name)!r}; "
            "choose another folder, or go on with the same"
        )


def read_secret(path: str, name: str) -> str:
    """Return the key or token that a file holds, without blanks at its ends.

    Args:
        path: of the file; `~` is the home.
        name: what names the file, for messages.

    Raises:
        ConfigError: it cannot be read, or is no ASCII.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(MAX_SECRET_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} {path} must be a readable file of ASCII, but {error}") from error
