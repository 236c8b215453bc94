"""`nvila demo --web`: the node and two cameras go on, and a page in the browser shows them."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, NoReturn

from rich.console import Console

from nvila_ros.ros.camera_publisher import ros_args
from nvila_ros.tools.demo.session import DemoError
from nvila_ros.tools.demo.subprocesses import Children

CAMERAS = ("front", "rear")
READY_S = 90.0
POLL_S = 0.25


def show_web(children: Children, model: dict[str, Any], world: int, port: int, console: Console) -> NoReturn:
    """Start the node and its cameras, print the page's address, and wait until interrupted.

    Args:
        children: starts processes and stops them.
        model: parameters of the node that name its model.
        world: seed of the first camera's world; the second one's is the next.
        port: of the page.
        console: where the address is printed.

    Raises:
        ChildError: the node or a camera ended.
        DemoError: the node was not ready in time.
    """
    topics = [f"/{name}/image" for name in CAMERAS]
    node = {**model, "cameras": list(CAMERAS), "camera_topics": topics, "http_port": port, "strict_parameters": True}
    children.start("nvila_node", "nvila_ros.ros.node", ros_args(node))
    for place, (name, topic) in enumerate(zip(CAMERAS, topics, strict=True)):
        remapped = ["--ros-args", "-r", f"image:={topic}", "-r", f"__node:={name}"]
        args = [*ros_args({"world": world + place, "rate_hz": 15.0}), *remapped]
        children.start(f"camera_{name}", "nvila_ros.ros.camera_publisher", args)
    url = f"http://127.0.0.1:{port}"
    with console.status("starting the node and two cameras"):
        _wait(lambda: _is_ready(url), children.check)
    console.print(f"open {url} in a browser; Ctrl-C ends it")
    while True:
        children.check()
        time.sleep(POLL_S)


def _wait(is_done: Callable[[], bool], check: Callable[[], None]) -> None:
    end_s = time.monotonic() + READY_S
    while not is_done():
        check()
        if time.monotonic() > end_s:
            raise DemoError(f"the node must be ready within {READY_S:g} s; see what /ready says")
        time.sleep(POLL_S)


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as response:
            return bool(json.load(response)["ready"])
    except (urllib.error.URLError, OSError):
        return False
