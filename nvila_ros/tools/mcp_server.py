"""`nvila mcp`: the Model Context Protocol over stdin and stdout, so that an agent can use a robot's eyes."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from nvila_ros.errors import ConfigError
from nvila_ros.tools.door_client import DoorClient

URL = "http://127.0.0.1:8000"
TOKEN_VARIABLE = "NVILA_HTTP_TOKEN"
MAX_TOKEN_BYTES = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument(
        "--url", default=URL, help="of the HTTP door of a node or of nvila serve (default: %(default)s)"
    )
    parser.add_argument(
        "--token-file", default="", metavar="FILE", help=f"token that the door asks for; else that of {TOKEN_VARIABLE}"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until stdin ends.

    Raises:
        ConfigError: the address or the token is not acceptable.
    """
    from nvila_ros.tools.mcp_tools import make_server

    make_server(DoorClient(args.url, _read_token(args.token_file))).run("stdio")
    return 0


def _read_token(path: str) -> str:
    if not path:
        return os.environ.get(TOKEN_VARIABLE, "")
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(MAX_TOKEN_BYTES).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {path} must be a readable file of ASCII, but {error}") from error
