"""Files: bounded when they are read, whole or absent when they are written, and one process to a folder."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import SafetensorError

from nvila_ros.errors import ConfigError
from nvila_ros.files import (
    atomic_file,
    atomic_folder,
    exclusive_lock,
    read_bounded,
    read_json,
    read_yaml,
    write_atomic,
    write_errors,
)
from tests.full_disk import largest_file

DEEP = 100_000


@pytest.mark.parametrize(
    ("read", "text", "rule"),
    [
        (read_json, b"[" * DEEP + b"]" * DEEP, "nested too deeply"),
        (read_json, b'"\xff"', "codec can't decode"),
        (read_json, b"{", "Expecting property name"),
        (read_json, b"1" * 5000, "limit"),
        (read_yaml, b"[" * DEEP + b"]" * DEEP, "line 1 is nested deeper than 64 levels"),
        (read_yaml, b"- " * DEEP + b"x", "line 1 is nested deeper than 64 levels"),
        (read_yaml, b"a: &a [x, x]\nb: &b [*a, *a]\n", "line 2 has an alias; write the value out"),
        (read_yaml, b"a: [", "expected the node content"),
        (read_yaml, b"\xff", "codec can't decode"),
        (read_yaml, b"#" * (1 << 20) + b"\n", "at most 1,048,576 bytes and has more"),
    ],
)
def test_text_that_would_grow_or_recurse_is_refused(
    tmp_path: Path, read: Callable[[Path], object], text: bytes, rule: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(text)

    with pytest.raises(ValueError, match=rule):
        read(path)


def test_bound_itself_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"123")

    assert read_bounded(tmp_path / "file", 3) == b"123"
    with pytest.raises(ValueError, match="at most 2 bytes"):
        read_bounded(tmp_path / "file", 2)


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (Path("/dev/zero"), tmp_path / "pipe"):
        with pytest.raises(ValueError, match="must be a regular file"):
            read_bounded(path, 10)
    with pytest.raises(OSError, match="directory"):
        read_bounded(tmp_path, 10)


def test_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with atomic_file(path) as part:
        part.write_bytes(b"some")
        assert not path.exists()

    assert path.read_bytes() == b"some"
    assert list(path.parent.iterdir()) == [path]


def test_full_disk_leaves_the_older_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"older")

    with largest_file(1 << 10), pytest.raises(ConfigError, match="file cannot be written: File too large; make room"):
        write_atomic(path, b"x" * (1 << 20))

    assert path.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A folder that is to be replaced."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "older").write_text("it")
    return tmp_path / "model"


def files_beside(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*") if path.is_file())


def test_folder_is_replaced_when_it_is_whole_and_on_the_disk(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))

    with atomic_folder(older) as part:
        (part / "deep").mkdir()
        (part / "deep" / "newer").write_text("it")
        assert files_beside(older)[-1] == "model/older"

    assert files_beside(older) == ["model/deep/newer"]
    written = (older, older / "deep" / "newer", older / "deep", older.parent)
    assert synced == [path.stat().st_ino for path in written]


def write_too_much(folder: Path) -> None:
    with largest_file(1 << 10), atomic_folder(folder) as part:
        (part / "small").write_bytes(bytes(10))
        (part / "large").write_bytes(bytes(1 << 20))


def test_folder_that_cannot_be_written_leaves_the_older_one_and_nothing_else(older: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written: File too large; make room"):
        write_too_much(older)

    assert files_beside(older) == ["model/older"]


def test_folder_is_put_back_where_a_process_was_killed_amid_the_change(older: Path) -> None:
    older.rename(older.with_name(".model.old"))

    with pytest.raises(KeyboardInterrupt), atomic_folder(older):
        raise KeyboardInterrupt

    assert files_beside(older) == ["model/older"]


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(28, "No space left on device"), "make room"),
        (SafetensorError("Error while serializing: No space left on device (os error 28)"), "make room"),
        (OSError(30, "Read-only file system"), "choose a folder that this user may write to"),
        (PermissionError(13, "Permission denied"), "choose a folder that this user may write to"),
        (NotADirectoryError(20, "Not a directory"), "choose another folder"),
        (OSError(5, "Input/output error"), "see whether its folder can be written to"),
    ],
)
def test_remedy_is_that_of_the_fault(error: Exception, remedy: str) -> None:
    with pytest.raises(ConfigError, match=remedy), write_errors(Path("some")):
        raise error


def test_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with (
        pytest.raises(ConfigError, match=r"file/x cannot be written: .*; choose another folder"),
        exclusive_lock(tmp_path / "file" / "x"),
    ):
        pass


@pytest.mark.parametrize("is_inside", [True, False])
def test_two_processes_never_work_in_one_folder(tmp_path: Path, is_inside: bool) -> None:
    def lock(name: str) -> object:
        return exclusive_lock(tmp_path / name, work="build", is_inside=is_inside)

    with lock("one"):
        with pytest.raises(ConfigError, match=r"another build is at work in .*one; wait for it"), lock("one"):
            pass
        with lock("other"):
            pass

    with lock("one"):
        pass


def test_partial_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    partial = tmp_path / "one" / "deep" / ".part-7-file"
    partial.parent.mkdir(parents=True)
    partial.touch()

    with exclusive_lock(tmp_path / "one", is_inside=False):
        assert not partial.exists()
