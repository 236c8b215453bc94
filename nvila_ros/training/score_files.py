"""Scores on disk: one small Parquet file for each block of samples, whole or not there at all.

A block is a run of consecutive samples; which rank scored it does not matter. So a run that was killed goes on at the
first block without a file, with any number of ranks. Needs pyarrow: it alone writes Parquet without bringing other
packages along, and it is the format's reference.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from nvila_ros.errors import ConfigError
from nvila_ros.files import PART, RUN_FILE, atomic_file, record_run
from nvila_ros.training.conversations.bad_samples import DataError

_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("index", pa.int64()),
        ("group", pa.string()),
        ("key", pa.int64()),
        ("log_large", pa.float64()),
        ("log_small", pa.float64()),
        ("num_tokens", pa.int32()),
        ("fault", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class ScoredSample:
    """The row of one sample in the table of scores.

    Attributes:
        source: its name.
        index: of the sample in it.
        group: its sub-dataset.
        key: stands for the record's content.
        log_large: see `pruning.SampleScore`.
        log_small: likewise.
        num_tokens: likewise.
        fault: why it was left out, one of `conversations.samples.REASONS`; empty where it was scored.
    """

    source: str
    index: int
    group: str
    key: int
    log_large: float = 0.0
    log_small: float = 0.0
    num_tokens: int = 0
    fault: str = ""


class ScoreFolder:
    """The files of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, run: Mapping[str, Any]) -> None:
        """Record what is scored, or check that an earlier run of this folder scored the same.

        Raises:
            ConfigError: the folder holds the scores of something else.
        """
        held = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        if RUN_FILE not in held and not all(name.startswith((PART, ".lock")) for name in held):
            raise ConfigError(f"{self.folder} holds something that is no run of scores; choose another")
        record_run(self.folder, run)

    def has(self, block: int) -> bool:
        """Whether a block was scored."""
        return self._path(block).is_file()

    def write(self, block: int, entries: Sequence[ScoredSample]) -> None:
        """Write a block.

        Raises:
            ConfigError: it cannot be written.
        """
        table = pa.Table.from_pylist([asdict(entry) for entry in entries], schema=_SCHEMA)
        data = io.BytesIO()
        parquet.write_table(table, data)
        with atomic_file(self._path(block)) as part:
            part.write_bytes(data.getbuffer())

    def read(self, num_blocks: int) -> pa.Table:
        """Return all blocks in order.

        Raises:
            DataError: one is missing or damaged.
        """
        tables = []
        for block in range(num_blocks):
            try:
                tables.append(parquet.read_table(self._path(block), schema=_SCHEMA, partitioning=None))
            except (OSError, pa.ArrowException) as error:
                path = self._path(block)
                raise DataError(f"{path} is missing or damaged ({error}); remove it and run again") from error
        return pa.concat_tables(tables)

    def _path(self, block: int) -> Path:
        return self.folder / "scores" / f"{block:08d}.parquet"
