"""The answers of an evaluation, a line of JSON for each record, so that an interrupted run goes on where it stopped.

The first line identifies the run: its data, model and settings. A line that was cut off while it was written is dropped
and its record is asked again. Scores are not kept: they are computed from the answers, so another metric needs no
second run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from nvila_ros.errors import ConfigError
from nvila_ros.files import close_reporting

Key = tuple[str, int]
"""Name of a source, and index of a record in it."""


class AnswerLog:
    """The lines of one run; without a path they are held in memory.

    Args:
        path: of the file, made where there is none.
        run: what decides the answers, as JSON holds it.

    Attributes:
        lines: that of each record that was asked about.

    Raises:
        ConfigError: the file is of another run or no such file, or cannot be written.
    """

    def __init__(self, path: Path | None, run: Mapping[str, Any]) -> None:
        self.lines: dict[Key, dict[str, Any]] = {}
        self._file = None
        self._path = path or Path()
        if path is None:
            return
        try:
            if path.exists() and not path.is_file():
                raise ConfigError(f"--out {path} is no file; choose another")
            known = path.read_bytes() if path.exists() else b""
            whole = known[: known.rfind(b"\n") + 1]
            if not whole and not _as_line({"run": run}).startswith(known):
                raise ConfigError(f"--out {path} exists and holds no answers of nvila eval; choose another file")
            self._take(path, whole, dict(run))
            self._file = path.open("r+b" if known else "wb")
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
        except OSError as error:
            raise ConfigError(f"--out {path} cannot be written: {error.strerror}; choose another file") from error
        if not whole:
            self._write({"run": run})

    def __enter__(self) -> AnswerLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            close_reporting(self._file, self._path, is_failing=kind is not None)

    def add(self, key: Key, line: dict[str, Any]) -> None:
        """Keep the result of one record.

        Raises:
            ConfigError: the disk is full.
        """
        self.lines[key] = line
        self._write({"source": key[0], "record": key[1], **line})

    def _take(self, path: Path, whole: bytes, run: dict[str, Any]) -> None:
        try:
            found = [json.loads(line) for line in whole.splitlines()]
            known = found[0]["run"] if found else run
            keys = [(line.pop("source"), line.pop("record")) for line in found[1:]]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigError(f"--out {path} exists and holds no answers of nvila eval; choose another file") from error
        changed = sorted(name for name in {*known, *run} if known.get(name) != run.get(name))
        if changed:
            was = {name: known.get(name) for name in changed}
            now = {name: run.get(name) for name in changed}
            raise ConfigError(f"--out {path} holds answers of another run, {was} and not {now}; choose another file")
        self.lines.update(zip(keys, found[1:], strict=True))

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(_as_line(line))
            self._file.flush()
        except OSError as error:
            raise ConfigError(f"--out cannot be written any more: {error.strerror}; make room and run again") from error


def _as_line(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
