"""Which files a bag is made of, and what to do where they cannot be read; rosbags is not needed for this."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

BAG_SUFFIXES = frozenset({".db3", ".mcap"})
"""Of the files that are read as bags, in small letters."""
METADATA = "metadata.yaml"
_MCAP_MAGIC = b"\x89MCAP0\r\n"
_SQLITE_MAGIC = b"SQLite format 3\0"


def is_bag(path: Path) -> bool:
    """Whether a path has the look of a bag: by its suffix, or as a folder with metadata or only bags in it."""
    if not path.is_dir():
        return path.suffix.lower() in BAG_SUFFIXES
    suffixes = {file.suffix.lower() for file in path.iterdir()}
    return (path / METADATA).is_file() or (bool(suffixes) and suffixes <= BAG_SUFFIXES)


def list_files(folder: Path) -> list[Path]:
    """Return the files of a folder's bag: those that its metadata lists one a line, else all that look like one."""
    listed = re.findall(r"^\s*-\s*(?!path:)[\"']?([^\"'\n]+\.(?:mcap|db3))[\"']?\s*$", _metadata(folder), re.M)
    if listed:
        return [folder / Path(name).name for name in dict.fromkeys(listed)]
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in BAG_SUFFIXES)


def is_compressed(folder: Path) -> bool:
    """Whether the files of a folder's bag, or its messages, are compressed by rosbag2 itself."""
    mode = re.search(r"^\s*compression_mode:\s*[\"']?(\w*)", _metadata(folder), re.M)
    return mode is not None and mode[1].lower() not in ("", "none")


def _metadata(folder: Path) -> str:
    file = folder / METADATA
    return file.read_text(errors="replace") if file.is_file() else ""


def advise(path: Path) -> str:
    """Return what to do about a bag that cannot be read, as a second sentence."""
    files = list_files(path) if path.is_dir() else [path]
    for file in (file for file in files if file.is_file()):
        content = _ends(file)
        if not content:
            return f"; {file} is empty"
        if file.suffix.lower() == ".mcap" and not content.startswith(_MCAP_MAGIC):
            return f"; {file} is no mcap file"
        if file.suffix.lower() == ".mcap" and not content.endswith(_MCAP_MAGIC):
            return f"; it was cut off, and is mended with: mcap recover {file} -o WHOLE.mcap"
        if file.suffix.lower() == ".db3" and not content.startswith(_SQLITE_MAGIC):
            return f"; {file} is no database of SQLite"
    return "; it is damaged, or of a format that is not read"


def _ends(file: Path) -> bytes:
    """Return the first and last bytes of a file."""
    with contextlib.suppress(OSError), file.open("rb") as opened:
        first = opened.read(16)
        opened.seek(max(file.stat().st_size - 8, 0))
        return first + opened.read()
    return b""
