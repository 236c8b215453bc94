"""`nvila serve`: a page in the browser and OpenAI's API about a video, pictures, a webcam or the world; without ROS."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import sys
import threading
import time
from typing import Any

import yaml

from nvila_ros.config import NodeConfig, from_dict
from nvila_ros.errors import ConfigError
from nvila_ros.http.standalone import Standalone
from nvila_ros.serving.model_loader import ModelState, Status
from nvila_ros.serving.pipeline import load_model
from nvila_ros.tools.live_sources import open_source
from nvila_ros.tools.options import add_model_options, size, whole

DEFAULTS = NodeConfig()
PORT = 8000
"""Where live-vlm-webui and others look for a server first."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="[NAME=]SOURCE",
        help="world, world:SEED, index of a webcam, video file, picture or folder of pictures; several are cameras",
    )
    parser.add_argument("--model", default=DEFAULTS.model, help="checkpoint or build (default: %(default)s)")
    add_model_options(parser)
    parser.add_argument("--host", default=DEFAULTS.http_host, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=whole, default=PORT, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--token-file", default="", metavar="FILE", help="token that clients must show")
    parser.add_argument("--size", type=size, default=(640, 480), metavar="WxH", help="of the world (default: 640x480)")
    parser.add_argument("--rate", type=float, default=10.0, metavar="HZ", help="of the world (default: 10)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other parameter of the node; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM.

    Raises:
        NvilaError: an argument, the model or a source is not acceptable.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    named = _named(args.sources)
    cameras = [open_source(name, source, size=args.size, rate_hz=args.rate) for name, source in named.items()]
    server = Standalone(_config(args, tuple(named)), cameras, load_model, time.time_ns, _Reporter())
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        server.start()
        _say(f"listening on {server.door.url} (OpenAI API at {server.door.url}/v1)")
        server.work(stop)
    finally:
        _say("ending")
        server.close()
    return 1 if server.host.has_died and not stop.is_set() else 0


class _Reporter:
    """Prints what the model is doing, one line for each state and part."""

    def __init__(self) -> None:
        self._last: tuple[Any, ...] = ()

    def __call__(self, status: Status) -> None:
        line = (status.state, status.part, status.model, status.text if status.state is not ModelState.BUILDING else "")
        if line != self._last:
            self._last = line
            about = status.text or f"{status.model} on {status.backend}, {status.precision}"
            _say(f"{status.state.name.lower()}: {about}")


def _say(line: str) -> None:
    """Print a line in one piece: two threads do, and `print` writes its end apart."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _named(sources: list[str]) -> dict[str, str]:
    """Return sources by the name of their camera; the first without one is `camera`, the next `camera2`.

    Raises:
        ConfigError: two have the same name.
    """
    named: dict[str, str] = {}
    for place, text in enumerate(sources, start=1):
        match = re.fullmatch(r"([A-Za-z]\w*)=(.+)", text, re.ASCII | re.DOTALL)
        name = match[1] if match else "camera" if place == 1 else f"camera{place}"
        if name in named:
            raise ConfigError(f"cameras must have different names, got {name} twice; write NAME=SOURCE")
        named[name] = match[2] if match else text
    return named


def _config(args: argparse.Namespace, cameras: tuple[str, ...]) -> NodeConfig:
    """Return the node's parameters as the options say.

    Raises:
        ConfigError: a value breaks its rule.
    """
    values: dict[str, Any] = {
        "model": args.model,
        "backend": args.backend,
        "precision": args.precision,
        "threads": args.threads,
        "cameras": cameras,
        "http_host": args.host,
        "http_port": args.port,
        "http_token_file": args.token_file,
    }
    for text in args.set:
        name, is_given, value = text.partition("=")
        if not is_given:
            raise ConfigError(f"--set takes NAME=VALUE, got {text!r}")
        values[name] = yaml.safe_load(value)
    config: NodeConfig = from_dict(NodeConfig, values)
    return config
