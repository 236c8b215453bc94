"""Find the files that are not Python: launch files, the Fast DDS profile, recipes, the embedded checkpoint.

Three ways of installing put them in three places, and none may need an environment variable: a source tree (also an
editable or symlinked install) has them beside the package; pip puts them under the environment's prefix; colcon under
the prefix that `AMENT_PREFIX_PATH` names. The first folder that has the file wins, in that order. The index of ament
is not asked: pip's ROS wheels leave it unset.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from nvila_ros.errors import ConfigError

PACKAGE = "nvila_ros"
PROFILE_VARIABLES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
"""Variables that Fast DDS reads, from Kilted on and before."""


def share_path(*parts: str) -> Path:
    """Return the path of a shared file or folder, e.g. `share_path("config", "fastdds_shm.xml")`.

    Raises:
        ConfigError: no place has it; all places are listed.
    """
    folders = list(_share_folders())
    for folder in folders:
        path = folder.joinpath(*parts)
        if path.exists():
            return path
    places = ", ".join(map(str, folders))
    raise ConfigError(f"{'/'.join(parts)} is in none of {places}; reinstall {PACKAGE} or source its workspace")


def version() -> str:
    """Return the version of this package.

    Raises:
        ConfigError: the package is not installed whole.
    """
    return ElementTree.parse(share_path("package.xml")).findtext("version", "")


def build_folder(name: str = "") -> Path:
    """Return the folder of all builds, or of the named one; it may not exist yet.

    `NVILA_ROS_BUILDS` names another than the user's cache.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / PACKAGE / "builds"
    return Path(os.environ.get("NVILA_ROS_BUILDS") or cache) / name


def fetched_folder(repo: str = "") -> Path:
    """Return the folder of all fetched checkpoints, or of the one named `owner/name`; it may not exist yet.

    `NVILA_ROS_CHECKPOINTS` names another than the user's cache.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / PACKAGE / "checkpoints"
    return Path(os.environ.get("NVILA_ROS_CHECKPOINTS") or cache) / repo


def images_profile() -> dict[str, str]:
    """Return the environment under which Fast DDS has room for images; empty where the user chose a profile.

    The publisher's environment counts: a process that publishes images needs it before it joins the ROS graph.
    """
    if any(os.environ.get(name) for name in PROFILE_VARIABLES):
        return {}
    variable = PROFILE_VARIABLES[os.environ.get("ROS_DISTRO") in ("humble", "iron", "jazzy")]
    return {variable: str(share_path("config", "fastdds_shm.xml"))}


def _share_folders() -> Iterator[Path]:
    source = Path(__file__).resolve().parents[1]
    if (source / "package.xml").is_file():
        yield source
    yield Path(sys.prefix, "share", PACKAGE)
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        if prefix:
            yield Path(prefix, "share", PACKAGE)
