"""Options that several verbs share, and the parsers of their values."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from nvila_ros.config import NodeConfig, bounds
from nvila_ros.errors import ConfigError
from nvila_ros.models.spec import PIXEL_DTYPES, PUBLISHED, VIDEO_MODES, Overrides
from nvila_ros.runtime.loading import AUTO, BACKENDS
from nvila_ros.runtime.rounded import PRECISIONS
from nvila_ros.video.windowing import WINDOW_RULE, Window, parse_window

MIN_WIDTH = 126  # characters


def add_model_options(
    parser: argparse.ArgumentParser, backends: Sequence[str] = (AUTO, *BACKENDS), precision: str = AUTO
) -> None:
    """Add `--backend`, the first of those given as its default, `--precision` and `--threads`."""
    auto = "auto: the one a build was made for; for a checkpoint cuda on a GPU, else onnxruntime, or cpu if it is large"
    default = auto if backends[0] == AUTO else backends[0]
    parser.add_argument("--backend", choices=backends, default=backends[0], help=f"runtime (default: {default})")
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default=precision,
        help="of a checkpoint on the backend cpu, rounded while it is read; auto is w8, or w4 where memory is short "
        "(default: %(default)s)",
    )
    parser.add_argument("--threads", type=whole, default=0, metavar="N", help="threads; 0 takes every core (default)")


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """Add what `overrides` reads."""
    parser.add_argument(
        "--video-mode",
        choices=VIDEO_MODES,
        default=PUBLISHED.video_mode,
        help="show a clip through the video encoder or as images (default: %(default)s)",
    )
    parser.add_argument(
        "--max-tiles", type=tiles, default=0, metavar="N", help="most tiles of a single image; 0 is the checkpoint's"
    )
    parser.add_argument(
        "--change-threshold",
        type=distance,
        default=PUBLISHED.change_threshold,
        metavar="X",
        help="leave out frames of a clip whose visual tokens all differ by at most this, 1 - cosine, from those of the "
        "last frame shown; 0 leaves out none (default: %(default)g)",
    )
    parser.add_argument(
        "--key-every",
        type=positive,
        default=PUBLISHED.key_every,
        metavar="N",
        help="then show the first of so many frames in a row in any case (default: %(default)s)",
    )
    parser.add_argument(
        "--pixels",
        choices=PIXEL_DTYPES,
        default=PUBLISHED.pixel_dtype,
        help="what pixels are rounded to (default: %(default)s)",
    )


def add_pixel_window(parser: argparse._ActionsContainer) -> None:
    """Add `--pixel-window`, a `Window`, or None where pictures say themselves what is shown."""
    parser.add_argument(
        "--pixel-window",
        type=pixel_window,
        metavar="W",
        help=f"of pictures of more than eight bits, what is shown: {WINDOW_RULE} (default: file)",
    )


def pixel_window(text: str) -> Window:
    """Read which values of a picture are shown."""
    try:
        return parse_window(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def overrides(args: argparse.Namespace) -> Overrides:
    """Return what the view options chose."""
    return Overrides(
        video_mode=args.video_mode,
        max_tiles=args.max_tiles,
        pixel_dtype=args.pixels,
        change_threshold=args.change_threshold,
        key_every=args.key_every,
    )


def whole(text: str) -> int:
    """Read a whole number >= 0."""
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got {text!r}")
    return int(text)


def tiles(text: str) -> int:
    """Read a number of tiles, as the node's parameter is bounded."""
    number, most = whole(text), bounds(NodeConfig)["max_tiles"].high
    assert most is not None, "the parameter has a bound"
    if number > most:
        raise argparse.ArgumentTypeError(f"expected at most {most:g} tiles, got {text!r}")
    return number


def distance(text: str) -> float:
    """Read a number in [0, 2]."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 2:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 2], got {text!r}")
    return number


def share(text: str) -> float:
    """Read a number in (0, 1]."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"expected a share in (0, 1], got {text!r}")
    return number


def positive(text: str) -> int:
    """Read a whole number >= 1."""
    number = whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return number


def size(text: str) -> tuple[int, int]:
    """Read a width and height in pixels, as `640x480`."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text, re.ASCII)
    if not match:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT, such as 640x480, got {text!r}")
    return int(match[1]), int(match[2])


def words(text: str) -> tuple[str, ...]:
    """Read a list separated by commas."""
    found = tuple(word.strip() for word in text.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"expected words separated by commas, none of them empty, got {text!r}")
    return found


def wide_console() -> Console:
    """Return a console for tables; where it is no terminal, it is wide enough for all of them."""
    console = Console(highlight=False)
    console.width = max(console.width, MIN_WIDTH)
    return console


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object on a line of its own."""
    print(json.dumps(values), flush=True)
