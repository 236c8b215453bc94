"""A ROS graph of our own on this machine, for programs that start nodes and show what they do."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

from nvila_ros.paths import images_profile
from nvila_ros.ros.domain import free_domain
from nvila_ros.tools.demo.subprocesses import Children

PLAIN_WIDTH = 120
"""Columns of a table where no terminal says how many there are."""


def ros_environment() -> dict[str, str]:
    """Return the environment of a ROS graph of our own on this machine, with room for images in Fast DDS."""
    return {
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_DOMAIN_ID": str(free_domain()),
        **images_profile(),
    }


@contextmanager
def own_graph(program: str) -> Iterator[tuple[Path, Children]]:
    """Give a scratch folder, and children in a graph that this process joins; all are ended with it, by SIGTERM too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    environ = ros_environment()
    os.environ.update(environ)
    with tempfile.TemporaryDirectory(prefix=f"{program}_") as name, Children(Path(name), environ) as children:
        yield Path(name), children


def open_console(quiet: bool) -> Console:
    """Return the console of standard output, wide enough for tables where it is no terminal."""
    console = Console(highlight=False, quiet=quiet)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
