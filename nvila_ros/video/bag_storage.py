"""The files of a ROS 2 bag, as the package rosbags reads them, and what to do where they cannot be read.

A bag is an mcap or db3 file, or a folder of them with or without its metadata: that is missing where the power was cut,
and lacks topics and storage after `ros2 bag reindex`, while the files themselves are sound. Channels of other kinds
than ROS messages, which lie beside the camera's in many an mcap, are passed over.

Source: rosbag2's storage formats as the package rosbags reads them.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosbags.rosbag2 import Reader, ReaderError
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.rosbag2.storage_sqlite3 import Sqlite3Reader
from rosbags.serde import SerdeError
from rosbags.typesys import TypesysError

from nvila_ros.errors import FrameError, NvilaError
from nvila_ros.video.bag_layout import BAG_SUFFIXES, METADATA, advise, is_compressed, list_files

if TYPE_CHECKING:
    from rosbags.interfaces import Connection

_SCHEMAS_READ = frozenset({"ros2msg", "ros2idl", "omgidl", ""})
# Which of these the reader works with depends on its version and Python's; none is imported here.
_LIBRARIES = {
    "apsw": "Error",
    "backports.zstd": "ZstdError",
    "compression.zstd": "ZstdError",
    "zstandard": "ZstdError",
}


class _Schemas(dict[int, Any]):
    """Schemas of an mcap file, of which those that are no ROS messages are kept by their name alone."""

    def __setitem__(self, key: int, schema: Any) -> None:
        known = schema.encoding in _SCHEMAS_READ
        super().__setitem__(key, schema if known else schema._replace(encoding="", data=""))


class _Mcap(McapReader):  # type: ignore[misc]  # to mypy a class of any kind
    """An mcap file that may hold channels of any encoding."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.schemas = _Schemas()


class BagFiles:
    """The files of a bag that is not compressed as a whole, opened one by one.

    Attributes:
        path: of the bag.
        connections: topics with their types; each belongs to one file.
    """

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        self.path = path
        kinds = {".mcap": _Mcap, ".db3": Sqlite3Reader}
        self._storages = [kinds[file.suffix.lower()](file) for file in files]
        self.connections: list[Connection] = []

    def __enter__(self) -> BagFiles:
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as opened:
            for storage in self._storages:
                storage.open()
                opened.callback(storage.close)
            self._stack = opened.pop_all()
        self.connections = [each for storage in self._storages for each in storage.connections]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def start_time(self) -> int:
        """When the bag received its first message, of any topic, ns; `ros2 bag play` counts from it."""
        return min(int(storage.metadata.start_time) for storage in self._storages)

    def messages(
        self, connections: Sequence[Connection], start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[Connection, int, bytes]]:
        """Yield messages of some connections with when the bag received each, file by file."""
        for storage in self._storages:
            own = [each for each in connections if each.owner is storage]
            if own:
                yield from storage.messages(own, start, stop)


@contextlib.contextmanager
def open_files(path: Path) -> Iterator[BagFiles | Reader]:
    """Open a bag; what its reader cannot read while it is open is raised as one kind of error.

    Raises:
        FileNotFoundError: it is not there.
        FrameError: it is no bag, is cut off or damaged, or of a format that is not read here.
    """
    if not path.exists():
        raise FileNotFoundError(str(path))
    try:
        with _open(path) as bag:
            yield bag
    except NvilaError:
        raise
    except _damage() as error:
        detail = " ".join(f"{type(error).__name__}: {error}".split())
        raise FrameError(f"bag {path} cannot be read ({detail:.200}){advise(path)}") from error


def _open(path: Path) -> BagFiles | Reader:
    if path.is_dir() and is_compressed(path):
        return Reader(path)
    files = list_files(path) if path.is_dir() else [path]
    if not files:
        raise FrameError(f"folder {path} holds no bag that can be read; looked for {sorted(BAG_SUFFIXES)}")
    if files[0].suffix.lower() not in BAG_SUFFIXES:
        raise FrameError(f"bag {path} cannot be read; its name must end in one of {sorted(BAG_SUFFIXES)}")
    missing = [str(file) for file in files if not file.is_file()]
    if missing:
        raise FrameError(f"bag {path} cannot be read; its {METADATA} names files that are missing: {missing}")
    return BagFiles(path, files)


def _damage() -> tuple[type[Exception], ...]:
    """Return what the reader raises of damaged bytes: it trusts lengths and names, so that is much."""
    own = (ArithmeticError, EOFError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
    libraries = [getattr(sys.modules[name], error) for name, error in _LIBRARIES.items() if name in sys.modules]
    return (AssertionError, ReaderError, SerdeError, TypesysError, struct.error, *own, *libraries)
