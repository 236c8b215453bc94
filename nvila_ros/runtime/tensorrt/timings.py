"""TensorRT's timings of kernels, kept beside the plans so that the next build need not measure them again.

The file's name has the digest of its bytes. The manifest does not list it; a truncated or changed file is ignored.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from nvila_ros.files import write_atomic
from nvila_ros.runtime.tensorrt.machine import Machine

_log = logging.getLogger(__name__)


def read_timings(folder: Path, machine: Machine) -> bytes:
    """Return the timings of an earlier build for this machine, or nothing."""
    for path in _find(folder, machine):
        data = path.read_bytes()
        if path.name == _name(machine, data):
            return data
        _log.warning("%s was changed and is not used", path)
    return b""


def write_timings(folder: Path, machine: Machine, data: bytes) -> None:
    """Store the timings of a build in place of earlier ones; empty timings are not stored."""
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
