"""Memory and processor time of a process, as the kernel counts them in /proc."""

from __future__ import annotations

import os
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int | str = "self") -> int:
    """Return the resident memory of a process."""
    return _status_bytes(pid, "VmRSS")


def peak_resident_bytes(pid: int | str = "self") -> int:
    """Return the largest resident memory of a process since it began, or since the peak was reset."""
    return _status_bytes(pid, "VmHWM")


def reset_peak() -> None:
    """Set the peak of this process to what it holds now."""
    Path("/proc/self/clear_refs").write_text("5")


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def _status_bytes(pid: int | str, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
