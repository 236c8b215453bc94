"""What this machine is: board, memory, processor, GPU, and the versions of all that the package may use.

Everything is read from files and from programs that are there; what a machine does not have is left out. Nothing here
imports a runtime: one that crashes while it is imported must not take the report with it.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from nvila_ros.models.host import CPUINFO, processor_flags
from nvila_ros.paths import PROFILE_VARIABLES, build_folder, images_profile, version
from nvila_ros.runtime.cpu.native_library import libraries

BOARD = Path("/proc/device-tree/model")
JETSON_RELEASE = Path("/etc/nv_tegra_release")
MEMINFO = Path("/proc/meminfo")
PACKAGES = ("onnxruntime", "openvino", "torch", "tensorrt", "tensorrt-rtx-cu12-bindings", "cuda-python", "numpy")
FEATURES = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm")
"""Flags of processors that kernels ask for."""
ROS_VARIABLES = ("ROS_DISTRO", "RMW_IMPLEMENTATION", "ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE")
GPU_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total,compute_cap", "--format=csv,noheader")
COMMAND_S = 10.0
GIB = 1 << 30


def describe() -> dict[str, dict[str, str]]:
    """Return facts by section and name, in the order to show them."""
    sections = {
        "machine": {
            "nvila_ros": version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "python": f"{platform.python_version()} at {sys.executable}",
            "board": _read(BOARD).strip("\0\n"),
            "jetson": next(iter(_read(JETSON_RELEASE).splitlines()), "").lstrip("# "),
            "power mode": _first_line(("nvpmodel", "-q")),
            "disk of builds": _free_disk(build_folder()),
            **_memory(),
        },
        "processor": _processor(),
        "gpu": {"gpu": _first_line(GPU_QUERY), "cuda compiler": _last_line(("nvcc", "--version"))},
        "packages": {name: _package(name) for name in PACKAGES},
        "ros": _ros(),
    }
    return {title: {name: text for name, text in facts.items() if text} for title, facts in sections.items()}


def _memory() -> dict[str, str]:
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", _read(MEMINFO), re.MULTILINE)}
    pairs = {"memory": ("MemTotal", "MemAvailable"), "swap": ("SwapTotal", "SwapFree")}
    return {
        name: f"{kib[total] * 1024 / GIB:.1f} GiB, {kib[free] * 1024 / GIB:.1f} free"
        for name, (total, free) in pairs.items()
        if kib.get(total)
    }


def _processor() -> dict[str, str]:
    names = re.findall(r"^(?:model name|Model)\s*:\s*(.+)$", _read(CPUINFO), re.MULTILINE)
    flags, kernels = processor_flags(), [library.nvila_isa().decode() for library in libraries()]
    return {
        "name": names[0] if names else platform.processor(),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}",
        "features": " ".join(name for name in FEATURES if name in flags) or "none that kernels ask for",
        "kernels": " ".join(kernels) or "none of ours run on it",
    }


def _ros() -> dict[str, str]:
    facts = {name: os.environ.get(name, "") for name in ROS_VARIABLES}
    profiles = {name: os.environ.get(name, "") for name in PROFILE_VARIABLES}
    facts |= profiles if any(profiles.values()) else _own(images_profile())
    names = sorted(str(dist.metadata["Name"]) for dist in importlib.metadata.distributions())
    rclpy = [f"{name} {_package(name)}" for name in names if name.endswith("rclpy")]
    middlewares = [name for name in names if re.search(r"-rmw-\w+-cpp$", name)]
    return facts | {"rclpy": " ".join(rclpy), "middlewares": " ".join(middlewares)}


def _own(profile: Mapping[str, str]) -> dict[str, str]:
    return {name: f"{path} (ours, for our own processes)" for name, path in profile.items()}


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _free_disk(folder: Path) -> str:
    place = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{shutil.disk_usage(place).free / GIB:.1f} GiB free at {folder}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _first_line(command: tuple[str, ...]) -> str:
    return next(iter(_output(command)), "")


def _last_line(command: tuple[str, ...]) -> str:
    return next(reversed(_output(command)), "")


def _output(command: tuple[str, ...]) -> list[str]:
    """Return the lines that a program prints; none where it is missing, fails or hangs."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in ran.stdout.splitlines() if line.strip()]
