"""What a repository's tree lists: which files a checkpoint needs, whether names are safe and bytes right.

In: JSON that a server sent. Out: `HubFile` values, every one checked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from nvila_ros.errors import HubError, shown

WANTED = ("*.json", "*.txt", "*.safetensors", "*.jinja", "*.model", "README.md", "LICENSE*", "NOTICE*")
UNWANTED = ("trainer_state.json", "nvila_*.json")
"""A log of the training, and names of our own."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MAX_FILES, MAX_PATH, MAX_FILE_BYTES = 10_000, 200, 1 << 40
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a repository.

    Attributes:
        path: inside the repository, with slashes; safe to join to a folder.
        size: bytes.
        digest: `sha256:...` of a file that git-lfs stores, else `git-sha1:...`, the id of git's blob.
    """

    path: str
    size: int
    digest: str

    @property
    def hex(self) -> str:
        """The digest alone, by which hubs name a file in ETags and caches."""
        return self.digest.partition(":")[2]

    @property
    def is_weights(self) -> bool:
        """Whether it is one of the large files."""
        return self.path.endswith(".safetensors")


def read_tree(entries: Iterable[Any]) -> list[HubFile]:
    """Return the files of a tree.

    Raises:
        HubError: an entry is not of the protocol, or its path would leave the folder.
    """
    files: dict[str, HubFile] = {}
    for entry in entries:
        if isinstance(entry, Mapping) and entry.get("type") == "directory":
            continue
        file = _read_entry(entry)
        if file.path in files:
            raise HubError(f"the hub lists {shown(file.path)} twice; nothing was fetched")
        files[file.path] = file
        if len(files) > MAX_FILES:
            raise HubError(f"the repository has more than {MAX_FILES:,} files, which no checkpoint has")
    return list(files.values())


def _read_entry(entry: Any) -> HubFile:
    try:
        lfs = entry.get("lfs")
        path, size = entry["path"], (lfs or entry)["size"]
        digest = f"sha256:{lfs['oid']}" if lfs else f"git-sha1:{entry['oid']}"
        is_digest = re.fullmatch("sha256:[0-9a-f]{64}|git-sha1:[0-9a-f]{40}", digest)
        if not is_digest or type(size) is not int or not 0 <= size <= MAX_FILE_BYTES:
            raise ValueError(f"size {size!r}, digest {digest!r}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise HubError(f"the hub lists a file as {shown(entry)}, which is not its protocol: {error}") from error
    check_path(path)
    return HubFile(path, size, digest)


def check_path(path: Any) -> None:
    """Refuse a path that may leave the folder that it is joined to, or that no file system takes.

    Raises:
        HubError: it does.
    """
    is_safe = isinstance(path, str) and 0 < len(path) <= MAX_PATH and path.isprintable() and "\\" not in path
    if not is_safe or any(part in ("", ".", "..") for part in path.split("/")):
        raise HubError(f"the hub lists the path {shown(path)}, which may leave its folder; nothing was fetched")


def choose_files(repo: str, files: Sequence[HubFile]) -> list[HubFile]:
    """Return the files that a checkpoint needs: configs, tokenizer, weights, card; never pickles or code.

    Raises:
        HubError: there are no weights among them.
    """
    chosen = [file for file in files if _matches(file, WANTED) and not _matches(file, UNWANTED)]
    if not any(file.is_weights for file in chosen):
        pickles = [file.path for file in files if _matches(file, PICKLES)]
        if pickles:
            raise HubError(
                f"{repo} has its weights as pickles alone ({shown(pickles)}), which can run code and are never "
                "fetched; nvila import-tinychat takes over those of TinyChat, others must be converted to safetensors"
            )
        raise HubError(f"{repo} has no safetensors, so it is no checkpoint; see whether the name is right")
    if not any(file.path == "config.json" for file in chosen):
        raise HubError(f"{repo} has no config.json, so it is no checkpoint; see whether the name is right")
    return sorted(chosen, key=lambda file: (file.is_weights, file.path != "config.json", file.path))


def _matches(file: HubFile, patterns: Iterable[str]) -> bool:
    name = file.path.rpartition("/")[2]
    return any(fnmatch(name, pattern) for pattern in patterns)


def is_right(path: Path, size: int, digest: str, on_bytes: Callable[[int], None] | None = None) -> bool:
    """Return whether a file on disk has this size and digest; all of it is read.

    Args:
        path: of the file.
        size: bytes.
        digest: as `HubFile` has it.
        on_bytes: takes how many bytes more were read; may raise to stop.

    Raises:
        OSError: it cannot be read.
    """
    if not path.is_file() or path.stat().st_size != size:
        return False
    kind, _, expected = digest.partition(":")
    found = hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
            if on_bytes:
                on_bytes(len(chunk))
    return found.hexdigest() == expected
