"""What TensorRT measured while it built, kept beside the plans, so that another build need not measure it again.

The file's name holds the digest of its bytes. It is no part of a build's seal: one that was cut off or changed is
passed over.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from nvila_ros.files import write_atomic
from nvila_ros.runtime.tensorrt.machine import Machine

_log = logging.getLogger(__name__)


def read_timings(folder: Path, machine: Machine) -> bytes:
    """Return what an earlier build for this machine measured, or nothing."""
    for path in _find(folder, machine):
        data = path.read_bytes()
        if path.name == _name(machine, data):
            return data
        _log.warning("%s was changed and is not used", path)
    return b""


def write_timings(folder: Path, machine: Machine, data: bytes) -> None:
    """Keep what a build measured, in place of what those before did; nothing is kept of nothing."""
    if not data:
        return
    path = folder / _name(machine, data)
    write_atomic(path, data)
    for other in _find(folder, machine):
        if other != path:
            other.unlink()


def _find(folder: Path, machine: Machine) -> list[Path]:
    return sorted(path for path in folder.glob("*.timings") if path.name.startswith(f"{machine.label}."))


def _name(machine: Machine, data: bytes) -> str:
    return f"{machine.label}.{hashlib.sha256(data).hexdigest()[:12]}.timings"
