"""What this machine offers: free memory, and the instructions of its processor."""

from __future__ import annotations

import platform
from pathlib import Path

from nvila_ros.errors import ConfigError

CPUINFO = Path("/proc/cpuinfo")
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
"""Flags of x86 processors that sum products of eight bits in 32 bits at once."""


def available_memory() -> int:
    """Return the bytes of memory that Linux reports as available.

    Raises:
        ConfigError: it reports none.
    """
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ConfigError("/proc/meminfo has no MemAvailable; builds and rounded checkpoints need Linux")


def processor_flags() -> set[str]:
    """Return the flags of the processors as the system lists them; empty where it is not Linux."""
    if platform.system() != "Linux":
        return set()
    lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split()}


def sums_int8_exactly() -> bool:
    """Whether products of eight bits are summed without overflow by runtimes that use the processor's instructions.

    x86 before VNNI adds pairs of products in 16 bits and saturates there; ARM has no such instruction.
    """
    return platform.machine().lower() not in ("x86_64", "amd64") or bool(VNNI & processor_flags())
