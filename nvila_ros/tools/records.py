"""The files of conversations that a verb is given, folders opened up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nvila_ros.training.conversations.files import RecordFile
from nvila_ros.training.conversations.samples import DataError

SUFFIXES = (".json", ".jsonl")


def open_sources(paths: Sequence[Path], media: Path | None, field: str = "") -> tuple[RecordFile, ...]:
    """Return the files of conversations, folders opened up.

    Args:
        paths: of files or folders.
        media: the folder of the media; None takes that of each file.
        field: that names a sub-dataset; none makes each file one.

    Raises:
        DataError: one is missing or empty, or two have one name.
    """
    files = [file for path in paths for file in ([path] if not path.is_dir() else _conversations_in(path))]
    sources = tuple(RecordFile(file, media or file.parent, field) for file in files)
    for source in sources:
        if not len(source):
            raise DataError(f"{source.path} holds no sample, and a sub-dataset must not be empty; leave it out")
    names = [source.name for source in sources]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"files must have names of their own, since what is kept of them does; got {twice} more than once"
        )
    return sources


def _conversations_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not files:
        raise DataError(f"{folder} holds no conversations; looked for {list(SUFFIXES)}")
    return files
