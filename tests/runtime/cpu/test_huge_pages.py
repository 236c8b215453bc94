"""Huge pages: what is in use is gathered, contents stay, and what is empty or forbidden is left alone."""

import mmap
import os
import re
from pathlib import Path

import pytest

from nvila_ros.runtime.cpu import huge_pages
from nvila_ros.runtime.cpu.huge_pages import ENABLED, HUGE_BYTES, use_huge_pages

SIZE = 4 * HUGE_BYTES
needs_huge_pages = pytest.mark.skipif(
    not ENABLED.exists()
    or "[never]" in ENABLED.read_text()
    or tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < (6, 1),
    reason="this kernel gathers no memory into huge pages",
)


@pytest.fixture
def memory() -> mmap.mmap:
    """Empty anonymous memory, in ordinary pages only."""
    memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.madvise(mmap.MADV_DONTNEED)
    return memory


def count(field: str) -> int:
    """Return what the kernel tells of this process, in bytes."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def allow(memory: mmap.mmap) -> None:
    """Undo the advice against huge pages."""
    memory.madvise(mmap.MADV_HUGEPAGE)


@needs_huge_pages
def test_memory_in_use_is_gathered_and_keeps_its_contents(memory: mmap.mmap) -> None:
    contents = os.urandom(SIZE)
    memory[:] = contents
    allow(memory)
    before = count("AnonHugePages")

    gathered = use_huge_pages()

    assert gathered >= SIZE - HUGE_BYTES  # the memory need not begin where a huge page can
    assert count("AnonHugePages") - before >= SIZE - HUGE_BYTES
    assert memory[:] == contents


@needs_huge_pages
def test_empty_memory_is_not_filled(memory: mmap.mmap) -> None:
    use_huge_pages()
    for start in range(0, SIZE, HUGE_BYTES):
        memory[start] = 1
    allow(memory)
    before = count("Rss")

    use_huge_pages()

    assert count("Rss") - before < HUGE_BYTES


def test_machine_that_forbids_them_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forbidden = tmp_path / "enabled"
    forbidden.write_text("always madvise [never]\n")
    monkeypatch.setattr(huge_pages, "ENABLED", forbidden)

    assert use_huge_pages() == 0


def test_system_without_them_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huge_pages, "ENABLED", tmp_path / "missing")

    assert use_huge_pages() == 0


def test_only_private_memory_of_no_file_counts() -> None:
    maps = """\
10000-20000 rw-p 00000000 00:00 0
20000-30000 r--p 00000000 00:00 0
30000-40000 rw-s 00000000 00:00 0
40000-50000 rw-p 00000000 fe:00 77                 /usr/lib/a file.so
50000-60000 rw-p 00000000 00:00 0                  [heap]
60000-70000 rw-p 00000000 00:00 0                  [stack]
"""

    assert list(huge_pages._anonymous_ranges(maps)) == [(0x10000, 0x20000), (0x50000, 0x60000)]
