"""What was fetched: a folder with `nvila_source.json`, which says from where and what each file must be.

That file is written last. While a folder is being filled it has `nvila_fetch.json`, with which nothing loads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nvila_ros.errors import HubError, shown
from nvila_ros.files import read_json, write_json
from nvila_ros.hub.files import HubFile, check_path, is_right
from nvila_ros.hub.published import find_source
from nvila_ros.hub.settings import cached_snapshot
from nvila_ros.models.checkpoint import UNFINISHED
from nvila_ros.paths import fetched_folder

SOURCE = "nvila_source.json"


@dataclass(frozen=True, slots=True)
class Source:
    """Where a fetched checkpoint comes from.

    Attributes:
        repo: owner/name.
        commit: of the repository.
        endpoint: of the hub.
        licence: as the repository's page tags it.
        files: all that were fetched.
    """

    repo: str
    commit: str
    endpoint: str
    licence: str
    files: tuple[HubFile, ...]

    def write(self, folder: Path) -> None:
        """Write it into a folder.

        Raises:
            ConfigError: it cannot be written.
        """
        files = {file.path: {"size": file.size, "digest": file.digest} for file in self.files}
        write_json(folder / SOURCE, asdict(self) | {"files": files})

    def find_faults(self, folder: Path, on_bytes: Callable[[HubFile, int], None] | None = None) -> list[str]:
        """Return what is wrong with the files of a folder.

        Args:
            folder: of the checkpoint.
            on_bytes: takes a file and how many of its bytes were read, and has all digests compared; without it, only
                sizes are.
        """
        return [fault for file in self.files if (fault := _fault(folder / file.path, file, on_bytes))]


def _fault(path: Path, file: HubFile, on_bytes: Callable[[HubFile, int], None] | None) -> str:
    if not path.is_file():
        return f"{file.path} is missing"
    if path.stat().st_size != file.size:
        return f"{file.path} has {path.stat().st_size:,} bytes and must have {file.size:,}"
    if on_bytes is None:
        return ""
    num_read = 0

    def count(more: int) -> None:
        nonlocal num_read
        num_read += more
        on_bytes(file, num_read)

    return "" if is_right(path, file.size, file.digest, count) else f"{file.path} has another digest"


def read_source(folder: Path) -> Source | None:
    """Return where a folder's checkpoint comes from, or None where it is unfinished or was not fetched.

    Raises:
        HubError: what it says about itself is damaged.
    """
    if not (folder / SOURCE).is_file() or (folder / UNFINISHED).is_file():
        return None
    try:
        values: Mapping[str, Any] = read_json(folder / SOURCE)
        texts = {key: str(values[key]) for key in ("repo", "commit", "endpoint", "licence")}
        files = tuple(HubFile(path, int(file["size"]), str(file["digest"])) for path, file in values["files"].items())
    except (OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise HubError(f"{folder / SOURCE} is damaged ({shown(error)}); delete it and fetch again") from error
    for file in files:
        check_path(file.path)
    return Source(**texts, files=files)


def find_fetched(model: str) -> Path | None:
    """Return the folder of a checkpoint that was fetched, by us or by the hub's own tools into their cache.

    Args:
        model: a published name, or owner/name, with or without @revision.
    """
    try:
        source = find_source(model)
    except HubError:
        return None
    folder = fetched_folder(source.repo)
    if (folder / SOURCE).is_file() and not (folder / UNFINISHED).is_file():
        return folder
    return cached_snapshot(source.repo, source.revision)
