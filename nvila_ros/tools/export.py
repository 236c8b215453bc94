"""`nvila export`: write a checkpoint's parts as ONNX files over one weights file."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from nvila_ros.export.parts import export_parts
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.runtime.loading import find_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("checkpoint", help="folder of a checkpoint, or the name of an embedded one")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")


def run(args: argparse.Namespace) -> int:
    """Write the files and list them."""
    paths = export_parts(open_checkpoint(find_checkpoint(args.checkpoint)), args.out)
    table = Table("file", "bytes")
    for path in paths:
        table.add_row(str(path), f"{path.stat().st_size:,}")
    Console().print(table)
    return 0
