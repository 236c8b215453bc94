"""`nvila mcp`: the Model Context Protocol over stdin and stdout, so that an agent can use a robot's eyes."""

from __future__ import annotations

import argparse
import os

from nvila_ros.files import read_secret
from nvila_ros.tools.door_client import DoorClient

URL = "http://127.0.0.1:8000"
TOKEN_VARIABLE = "NVILA_HTTP_TOKEN"


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

    token = read_secret(args.token_file, "--token-file") if args.token_file else os.environ.get(TOKEN_VARIABLE, "")
    make_server(DoorClient(args.url, token)).run("stdio")
    return 0
