"""A run of DeltaLoss over data sets: blocks of samples to score files, score files to the kept samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from nvila_ros.files import atomic_file
from nvila_ros.training.conversations.bad_samples import DataError, SampleError
from nvila_ros.training.conversations.encoding import EncodedSample
from nvila_ros.training.conversations.files import SampleSource
from nvila_ros.training.conversations.stream import SampleSequence
from nvila_ros.training.pruning import Scorer, content_key, delta_loss, score_samples, select_top
from nvila_ros.training.score_files import ScoredSample, ScoreFolder


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringRun:
    """The samples to score, and the two models.

    Attributes:
        sources: the data sets; their names are distinct.
        block_size: samples of a score file.
        row_tokens: that a model reads at once.
        is_strict: a sample that cannot be read ends the run, else it is left out and counted.
    """

    sources: tuple[SampleSource, ...]
    large: Scorer
    small: Scorer
    block_size: int = 256
    row_tokens: int = 4096
    is_strict: bool = True

    @property
    def num_blocks(self) -> int:
        """Score files of the whole run."""
        return -(-sum(map(len, self.sources)) // self.block_size)


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of all samples, in their order.

    Attributes:
        sources: names of the sources.
        groups: names of the sub-datasets.
        faults: reasons for which samples were left out.
        source_N: which source each sample is of, int64.
        index_N: which sample of it, int64.
        group_N: which sub-dataset, int64; -1 where it was left out.
        fault_N: which reason, int64; -1 where it was scored.
        key_N: stands for its content, int64.
        log_large_N: float64, 0 where it was left out.
        log_small_N: likewise.
        num_tokens_N: likewise.
    """

    sources: tuple[str, ...]
    groups: tuple[str, ...]
    faults: tuple[str, ...]
    source_N: np.ndarray
    index_N: np.ndarray
    group_N: np.ndarray
    fault_N: np.ndarray
    key_N: np.ndarray
    log_large_N: np.ndarray
    log_small_N: np.ndarray
    num_tokens_N: np.ndarray

    def delta(self, how: str) -> np.ndarray:
        """Return the score of each sample, (N,) float64, 0 where it was left out."""
        return delta_loss(self.log_large_N, self.log_small_N, np.maximum(self.num_tokens_N, 1), how)


def score_blocks(
    run: ScoringRun,
    folder: ScoreFolder,
    *,
    rank: int = 0,
    world_size: int = 1,
    on_block: Callable[[], None] | None = None,
) -> None:
    """Score the blocks of a rank that are not scored yet.

    Raises:
        NvilaError: a sample cannot be scored, or a file not be written.
    """
    sequence = SampleSequence(run.sources)
    for block in range(rank, run.num_blocks, world_size):
        if not folder.has(block):
            first = block * run.block_size
            positions = range(first, min(first + run.block_size, len(sequence)))
            folder.write(block, _score_block(run, sequence, positions))
        if on_block:
            on_block()


def _score_block(run: ScoringRun, sequence: SampleSequence, positions: Sequence[int]) -> list[ScoredSample]:
    entries: list[ScoredSample] = []
    for batch in _batches(run, sequence, positions, entries):
        scores = score_samples(run.large, run.small, [read for _, read in batch], run.row_tokens)
        for (entry, _), score in zip(batch, scores, strict=True):
            entries.append(replace(entry, **asdict(score)))
    order = {source.name: number for number, source in enumerate(run.sources)}
    return sorted(entries, key=lambda entry: (order[entry.source], entry.index))


_Read = tuple[ScoredSample, tuple[str, EncodedSample, EncodedSample]]


def _batches(
    run: ScoringRun, sequence: SampleSequence, positions: Sequence[int], left_out: list[ScoredSample]
) -> Iterator[list[_Read]]:
    """Yield samples as both models read them, as many as fit a row: tiles of a whole block would not fit memory."""
    batch: list[_Read] = []
    taken = 0
    for position in positions:
        number, index = sequence.locate(position)
        source = run.sources[number]
        sample = None
        try:
            sample = source.read(index)
            for_large, for_small = run.large.encode(sample), run.small.encode(sample)
        except SampleError as error:
            if run.is_strict:
                raise
            group = sample.group if sample else error.group
            left_out.append(ScoredSample(source.name, index, group, 0, fault=error.reason))
            continue
        num_tokens = max(len(for_large.ids_L), len(for_small.ids_L))
        if batch and taken + num_tokens > run.row_tokens:
            yield batch
            batch, taken = [], 0
        entry = ScoredSample(source.name, index, sample.group, content_key(source.line(index)))
        batch.append((entry, (sample.name, for_large, for_small)))
        taken += num_tokens
    if batch:
        yield batch


def gather(run: ScoringRun, folder: ScoreFolder) -> Scores:
    """Return the scores of a finished run.

    Raises:
        DataError: a score file is missing or damaged, no sample of a source or sub-dataset could be scored, or some
            were left out and the run is strict.
    """
    table = folder.read(run.num_blocks)
    names = tuple(source.name for source in run.sources)
    found, code_N = _codes(table["source"])
    source_N = np.array([names.index(name) for name in found])[code_N]
    faults, fault_N = _codes(table["fault"])
    groups, group_N = _codes(table["group"])
    for named, code_N in ((names, source_N), (groups, group_N)):
        for number, name in enumerate(named):
            fault = fault_N[code_N == number]
            if not (fault < 0).any():
                raise DataError(
                    f"no sample of {name} could be scored, and a sub-dataset must not end empty; the first one is "
                    f"left out as {faults[fault[0]] if len(fault) else 'missing'}"
                )
    if run.is_strict and faults:
        raise DataError(
            f"{(fault_N >= 0).sum()} samples were left out by an earlier run with --skip-bad ({', '.join(faults)}); "
            f"go on with it, or mend them and remove {folder.folder}"
        )
    group_N = np.where(fault_N < 0, group_N, -1)
    columns = (table[name].to_numpy() for name in ("key", "log_large", "log_small", "num_tokens"))
    return Scores(names, groups, faults, source_N, table["index"].to_numpy(), group_N, fault_N, *columns)


def _codes(column: pa.ChunkedArray) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the texts of a column but the empty one, and which of them each row holds, -1 for the empty one."""
    coded = column.combine_chunks().dictionary_encode()
    texts = coded.dictionary.to_pylist()
    known = [text for text in texts if text]
    return tuple(known), np.array([known.index(text) if text else -1 for text in texts])[coded.indices.to_numpy()]


def choose(scores: Scores, how: str, keep: float) -> np.ndarray:
    """Return which samples are kept, (N,) bool: of each sub-dataset the share with the highest scores."""
    delta_N = scores.delta(how)
    is_kept_N = np.zeros(len(delta_N), bool)
    for group in range(len(scores.groups)):
        members = np.flatnonzero(scores.group_N == group)
        is_kept_N[members] = select_top(delta_N[members], scores.key_N[members], keep)
    return is_kept_N


def write_kept(run: ScoringRun, scores: Scores, is_kept_N: np.ndarray, folder: Path) -> dict[str, Path]:
    """Write the kept samples of each source as JSON lines, in their order, and return the files by source.

    Raises:
        ConfigError: one cannot be written.
    """
    paths = {}
    for number, source in enumerate(run.sources):
        paths[source.name] = folder / f"{source.name}.jsonl"
        with atomic_file(paths[source.name]) as part, part.open("wb") as file:
            for index in scores.index_N[is_kept_N & (scores.source_N == number)].tolist():
                file.write(source.line(index) + b"\n")
    return paths
