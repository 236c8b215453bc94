"""Huge pages for weights, which are read from end to end at every step.

Runtimes keep their packed weights in anonymous memory of some hundred thousand pages of 4 KiB, and a step that reads
all of it waits for the page tables. Most systems give huge pages only on request (`madvise` in
`/sys/kernel/mm/transparent_hugepage/enabled`), and no runtime requests them; this module does, once a model is loaded.
Contents and addresses stay. On a kernel before 6.1, or another system, nothing happens.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

HUGE_BYTES = 2 << 20  # on x86-64, and on aarch64 with pages of 4 KiB
MADV_COLLAPSE = 25  # of linux/mman.h; the mmap module has no name for it
PRESENT = np.uint64(1 << 63)
FULL = 0.9
"""Share of a range that must be in memory already: the huge page fills the rest."""
MAPS, PAGEMAP = Path("/proc/self/maps"), Path("/proc/self/pagemap")
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages() -> int:
    """Move the process' anonymous memory that is in use into huge pages; return the bytes moved."""
    if not _are_allowed():
        return 0
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    moved = [libc.madvise(start, HUGE_BYTES, MADV_COLLAPSE) == 0 for start in _full_ranges()]
    return HUGE_BYTES * sum(moved)


def _are_allowed() -> bool:
    """Whether the system has such pages and its administrator has not forbidden them."""
    return ENABLED.exists() and "[never]" not in ENABLED.read_text(encoding="ascii") and mmap.PAGESIZE == 4096


def _full_ranges() -> Iterator[int]:
    """Yield the address of each aligned range of a huge page's size that is mostly in memory."""
    num_pages = HUGE_BYTES // mmap.PAGESIZE
    with PAGEMAP.open("rb", buffering=0) as pagemap:
        for first, end in _anonymous_ranges(MAPS.read_text(encoding="utf-8")):
            for start in range(-(-first // HUGE_BYTES) * HUGE_BYTES, end - HUGE_BYTES + 1, HUGE_BYTES):
                entries = os.pread(pagemap.fileno(), 8 * num_pages, 8 * start // mmap.PAGESIZE)
                if np.mean(np.frombuffer(entries, np.uint64) & PRESENT != 0) >= FULL:
                    yield start


def _anonymous_ranges(maps: str) -> Iterator[tuple[int, int]]:
    """Yield start and end of each private, writable mapping without a file."""
    for line in maps.splitlines():
        addresses, access, _, _, inode, *name = line.split(maxsplit=5)
        if access == "rw-p" and inode == "0" and (not name or name[0] == "[heap]"):
            first, end = (int(address, 16) for address in addresses.split("-"))
            yield first, end
