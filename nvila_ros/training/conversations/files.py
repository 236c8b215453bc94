"""Data sets on disk: a file of JSON lines, or one JSON array of records, read record by record.

Opening a file goes through it once and keeps the bounds of each record, 16 bytes a record; a record is read on demand.
So a file of any size can be shuffled, and its order can be resumed anywhere.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import mmap
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from nvila_ros.files import open_regular
from nvila_ros.training.conversations.bad_samples import DataError, SampleError
from nvila_ros.training.conversations.samples import Sample, parse_record
from nvila_ros.video.windowing import OWN, Window, named_window

MAX_RECORD_BYTES = 16 << 20
"""Most of one line: a record names its media, and holds text alone."""
_CHUNK = 1 << 22  # bytes
# A whole string is one token, so that brackets inside it do not count; a lone quote is a string that never ends.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}"]', re.DOTALL)


class SampleSource(Protocol):
    """A known number of samples, each of which can be read at any time.

    Attributes:
        name: distinct among the sources of a run; fit for a file name.
    """

    name: str

    def __len__(self) -> int: ...

    def read(self, index: int) -> Sample:
        """Return a sample.

        Raises:
            SampleError: it breaks a rule of the format.
        """

    def line(self, index: int) -> bytes:
        """Return the record as one line of JSON, without the line break."""

    def identity(self) -> dict[str, str]:
        """Return what determines its samples, such as the digest of all records."""


class RecordFile:
    """The records of one file.

    Args:
        path: of a JSON array if it begins with `[`, else of JSON lines; blank lines are passed over.
        media_folder: what the paths in it are relative to.
        group_field: the field that names a record's sub-dataset; none makes the whole file one.
        allow_outside: whether its media may lie outside the folder.
        window: which values of pictures of more than eight bits are shown.

    Raises:
        DataError: the file cannot be read, or is an array that is cut off.
    """

    def __init__(
        self,
        path: Path,
        media_folder: Path,
        group_field: str = "",
        *,
        allow_outside: bool = False,
        window: Window = OWN,
    ) -> None:
        self.path, self.name, self._window = path, path.stem, window
        self._media_folder, self._group_field, self._allow_outside = media_folder, group_field, allow_outside
        self._bounds = array("q")  # start and end of each record, alternating
        try:
            self._is_array = _first_byte(path) == b"["
            for start, end in _find_elements(path) if self._is_array else _find_lines(path):
                self._bounds.extend((start, end))
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; give a file of conversations") from error
        except DataError:
            raise
        except ValueError as error:
            raise DataError(f"{path} cannot be read: {error}; give a file of conversations") from error

    def __len__(self) -> int:
        return len(self._bounds) // 2

    def read(self, index: int) -> Sample:
        """Return a sample, as `SampleSource.read`.

        Raises:
            SampleError: it breaks a rule of the format.
            DataError: the record does not name its sub-dataset.
        """
        name = f"{self.path}, record {index + 1}"
        try:
            raw = self._raw(index)
            record = json.loads(raw)
            if b"\\u" in raw or b"\xed" in raw:  # half of a surrogate pair is JSON and no text
                json.dumps(record, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise SampleError("malformed", name, f"a record must be JSON in UTF-8: {error}") from error
        group = self._group(record, name) if self._group_field else self.name
        try:
            return parse_record(
                record, name, self._media_folder, group, allow_outside=self._allow_outside, window=self._window
            )
        except SampleError as error:
            error.group = group
            raise

    def line(self, index: int) -> bytes:
        """Return a record as one line, of a file of lines byte by byte what it holds."""
        raw = self._raw(index)
        return json.dumps(json.loads(raw), ensure_ascii=False).encode() if self._is_array else raw

    def identity(self) -> dict[str, str]:
        """Return what determines its samples: the file's digest, where its media are, and how they are shown."""
        outside = {"outside": "allowed"} if self._allow_outside else {}
        return {
            "digest": self.digest(),
            "media": str(self._media_folder.resolve()),
            **outside,
            **named_window(self._window),
        }

    def digest(self) -> str:
        """Return the digest of the whole file."""
        hasher = hashlib.blake2b(digest_size=16)
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
        return hasher.hexdigest()

    def _raw(self, index: int) -> bytes:
        start, end = self._bounds[2 * index : 2 * index + 2]
        with self.path.open("rb") as file:  # for each record: so a loader's processes share no position
            file.seek(start)
            return file.read(end - start)

    def _group(self, record: Any, name: str) -> str:
        if not isinstance(record, dict):
            return ""  # parsing reports what else is wrong with it
        found = record.get(self._group_field)
        if not isinstance(found, (str, int)) or found == "":
            raise DataError(f"{name}: field {self._group_field!r} must name the sub-dataset, got {found!r:.80}")
        return str(found)


def _first_byte(path: Path) -> bytes:
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            text = chunk.removeprefix(codecs.BOM_UTF8).strip()
            if text:
                return text[:1]
    return b""


def _find_lines(path: Path) -> Iterator[tuple[int, int]]:
    start = 0
    with path.open("rb") as file:
        while line := file.readline(MAX_RECORD_BYTES + 1):
            if len(line) > MAX_RECORD_BYTES:
                raise ValueError(
                    f"a record must have at most {MAX_RECORD_BYTES:,} bytes, and one at {start:,} has more"
                )
            text = line.strip()
            if text:
                first = start + line.index(text[:1])
                yield first, first + len(text)
            start += len(line)


def _find_elements(path: Path) -> Iterator[tuple[int, int]]:
    """Yield where each object of a JSON array begins and ends.

    Raises:
        DataError: the array does not end, or holds something else than objects.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        depth = start = end = 0
        for found in _TOKEN.finditer(data):
            token = found[0]
            if token == b'"':
                break
            if token in (b"{", b"["):
                if depth == 1:
                    start = found.start()
                    _check_gap(path, data[end:start])
                elif depth == 0:
                    end = found.end()
                depth += 1
            elif token in (b"}", b"]"):
                depth -= 1
                if depth == 1:
                    end = found.end()
                    yield start, end
                elif depth == 0:
                    _check_gap(path, data[end : found.start()])
                    end = found.end()
                    break
        if depth:
            raise DataError(f"{path} is a JSON array that does not end; it was cut off, copy it anew")
        _check_gap(path, data[end:])


def _check_gap(path: Path, between: bytes) -> None:
    if between.strip(b" \t\r\n,"):
        raise DataError(f"{path} must be an array of objects, got {between.strip()[:40]!r} among them")
