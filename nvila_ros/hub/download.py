"""One file of a repository onto the disk: resumed where a run stopped, and under its name only once it is right.

The digest that the tree lists is part of the partial file's name, so bytes of another version are never continued.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from nvila_ros.errors import HubError
from nvila_ros.files import write_errors
from nvila_ros.hub.client import MAX_TRIES, NETWORK_ERRORS, HubClient, Reply, TransientError
from nvila_ros.hub.files import CHUNK, HubFile, is_right
from nvila_ros.hub.settings import cached_blob

PARTIAL = ".part"


@dataclass(frozen=True, slots=True)
class Download:
    """What all files of a run share.

    Attributes:
        client: speaks with the hub.
        repo: owner/name.
        commit: of the repository.
        folder: where the files go.
        on_bytes: takes a file and how many of its bytes are there; may raise to stop.
    """

    client: HubClient
    repo: str
    commit: str
    folder: Path
    on_bytes: Callable[[HubFile, int], None]

    def partial(self, file: HubFile) -> Path:
        """Return where a file is kept until it is whole and right."""
        target = self.folder / file.path
        return target.with_name(f"{target.name}.{file.hex[:12]}{PARTIAL}")

    def have(self, file: HubFile) -> int:
        """Return how many bytes of a file need not be moved."""
        target, blob = self.folder / file.path, cached_blob(self.repo, file.hex)
        if any(path.is_file() and path.stat().st_size == file.size for path in (target, blob)):
            return file.size
        partial = self.partial(file)
        return min(partial.stat().st_size, file.size) if partial.is_file() else 0

    def fetch(self, file: HubFile) -> int:
        """Put a file into the folder, and return how many bytes were moved; 0 where it is there and right.

        Raises:
            HubError: the hub refuses, cannot be reached, or sends other bytes than it lists, twice.
            ConfigError: the file cannot be written, such as where the disk is full.
        """
        target, partial, moved = self.folder / file.path, self.partial(file), 0
        if is_right(target, file.size, file.digest):
            self.on_bytes(file, file.size)
            return 0
        with write_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(cached_blob(self.repo, file.hex), partial, file.size)
            partial.touch()
        for _ in range(2):
            moved += self._complete(file, partial)
            if is_right(partial, file.size, file.digest):
                _settle(partial, target)
                return moved
            with write_errors(partial):
                partial.unlink()  # may be linked to a cache's file, so it is not written over
                partial.touch()
        raise HubError(
            f"{file.path} of {self.repo} has another digest than {self.client.endpoint} lists, twice: "
            "the connection or the hub changes its bytes; nothing of it was kept, try another endpoint"
        )

    def _complete(self, file: HubFile, partial: Path) -> int:
        """Append until the partial file has its size; the failures in a row that move nothing are counted."""
        moved = tries = 0
        while (size := partial.stat().st_size) != file.size:
            try:
                self._append(file, partial, size)
            except TransientError as error:
                gained = max(partial.stat().st_size - size, 0)
                tries = 1 if gained else tries + 1
                if tries > MAX_TRIES:
                    raise
                self.client.wait(tries, error)
            moved += max(partial.stat().st_size - size, 0)
        return moved

    def _append(self, file: HubFile, partial: Path, size: int) -> None:
        if size > file.size:
            _truncate(partial)
            return
        reply = self.client.open(self.repo, self.commit, file, size)
        with closing(reply.body):
            if reply.status == 416 or not _goes_on(reply, size, file.size):
                _truncate(partial)
                if reply.status != 200:
                    raise TransientError(f"{self.client.endpoint} cannot continue {file.path}; it begins anew")
                size = 0
            with write_errors(partial), partial.open("ab") as output:
                self._copy(file, reply, output.write, size)

    def _copy(self, file: HubFile, reply: Reply, write: Callable[[bytes], object], size: int) -> None:
        while size < file.size:
            try:
                chunk = reply.body.read(min(CHUNK, file.size - size))
            except NETWORK_ERRORS as error:
                raise TransientError(f"the connection broke at byte {size:,} of {file.path}: {error}") from error
            if not chunk:
                raise TransientError(f"the connection ended at byte {size:,} of {file.path}; what came is kept")
            write(chunk)
            size += len(chunk)
            self.on_bytes(file, size)


def _goes_on(reply: Reply, start: int, size: int) -> bool:
    """Return whether a reply has the bytes from `start` on; one with a 200 has all of them.

    Raises:
        HubError: the file is of another size.
    """
    ranged = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", reply.headers.get("content-range", ""))
    if reply.status == 206 and ranged:
        total, first = ranged[2], int(ranged[1])
    else:
        length = reply.headers.get("content-length", "*")
        total, first = length, 0
    if total.isdigit() and int(total) != size:
        reply.body.close()
        raise HubError(f"the hub sends a file of {int(total):,} bytes and lists {size:,}; it changed, so run again")
    return first == start


def _truncate(partial: Path) -> None:
    with write_errors(partial):
        os.truncate(partial, 0)


def _link(blob: Path, partial: Path, size: int) -> None:
    """Take over a file that the hub's own tools fetched, without a second copy where the file system allows it."""
    if blob.is_file() and blob.stat().st_size == size:
        partial.unlink(missing_ok=True)
        with suppress(OSError):  # another file system: it is fetched again
            os.link(blob.resolve(), partial)


def _settle(partial: Path, target: Path) -> None:
    with write_errors(target):
        with partial.open("rb") as file:
            os.fsync(file.fileno())  # else after a power cut the file may be there and empty
        os.replace(partial, target)
