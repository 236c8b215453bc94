"""The data sets that a verb reads: its options, and the files of conversations and bags that they name."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nvila_ros.tools.options import add_pixel_window
from nvila_ros.training.conversations.bad_samples import DataError
from nvila_ros.training.conversations.files import RecordFile, SampleSource
from nvila_ros.training.conversations.recorded import RecordedAnswers
from nvila_ros.video.bag_layout import is_bag
from nvila_ros.video.windowing import OWN, Window

SUFFIXES = (".json", ".jsonl")


def add_media_options(parser: argparse._ActionsContainer) -> None:
    """Declare where media lie, and what happens to bad samples."""
    parser.add_argument("--media", type=Path, metavar="DIR", help="folder of the media; else that of each file")
    parser.add_argument(
        "--allow-outside", action="store_true", help="also read media outside of that folder: trust the data set"
    )
    add_pixel_window(parser)
    parser.add_argument("--skip-bad", action="store_true", help="leave out and count samples that cannot be read")


def open_sources(
    paths: Sequence[Path],
    media: Path | None,
    field: str = "",
    *,
    allow_outside: bool = False,
    reads_bags: bool = False,
    window: Window | None = None,
) -> tuple[SampleSource, ...]:
    """Open files of conversations, and those in folders.

    Args:
        paths: of files or folders.
        media: the folder of the media; None takes that of each file.
        field: that names a sub-dataset; none makes each file one.
        allow_outside: whether media may lie outside of their folder.
        reads_bags: whether a bag is read as the answers that were recorded in it.
        window: which values of pictures of more than eight bits are shown; None is what they say themselves.

    Raises:
        DataError: one is missing or empty, or two have one name.
        FrameError: a bag cannot be read.
    """
    sources: list[SampleSource] = []
    shown = window or OWN
    for path in paths:
        if reads_bags and is_bag(path):
            sources.append(RecordedAnswers(path, field, shown))
            continue
        for file in _conversations_in(path) if path.is_dir() else [path]:
            folder = media or file.parent
            sources.append(RecordFile(file, folder, field, allow_outside=allow_outside, window=shown))
            if not len(sources[-1]):
                raise DataError(f"{file} holds no sample, and a sub-dataset must not be empty; leave it out")
    counts = Counter(source.name for source in sources)
    repeated = sorted(name for name, count in counts.items() if count > 1)
    if repeated:
        raise DataError(f"files must have distinct names, by which results are kept; got {repeated} more than once")
    return tuple(sources)


def _conversations_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not files:
        raise DataError(f"{folder} holds no conversations; looked for {list(SUFFIXES)}")
    return files
