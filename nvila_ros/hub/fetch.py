"""A whole checkpoint into a folder: small files first, judged by the loader, then the weights, several at a time.

    revision -> tree -> configs and headers -> judged -> weights -> digests -> nvila_source.json

What is there and right is not moved again, whoever put it there.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from nvila_ros.errors import CheckpointError, ConfigError, HubError
from nvila_ros.files import write_errors, write_json
from nvila_ros.hub.client import NETWORK_ERRORS, HubClient, Revision, TransientError
from nvila_ros.hub.download import PARTIAL, Download
from nvila_ros.hub.files import HubFile, choose_files
from nvila_ros.hub.local import SOURCE, Source, read_source
from nvila_ros.hub.published import HubSource
from nvila_ros.models.checkpoint import UNFINISHED

MAX_HEADER = 64 << 20
"""Bytes of the header of a weight file; published ones have some 100 kB."""
FIRST_BYTES = 1 << 16
Judge = Callable[[Path], None]
OnBytes = Callable[[HubFile, int], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a fetch would do.

    Attributes:
        source: as asked for.
        revision: which commit that is.
        files: that a checkpoint needs, small ones first.
        left_out: paths of all others.
        to_move: bytes that are not on this machine.
        free: bytes of the disk.
        is_done: the folder has this commit already, whole by its sizes.
    """

    source: HubSource
    revision: Revision
    files: tuple[HubFile, ...]
    left_out: tuple[str, ...] = ()
    to_move: int = 0
    free: int = 0
    is_done: bool = False

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def plan_fetch(client: HubClient, source: HubSource, folder: Path) -> Plan:
    """Ask the hub what there is, and compare it with the folder; nothing is written.

    Raises:
        HubError: the hub refuses, cannot be reached, or has no checkpoint under this name.
    """
    known = read_source(folder)
    revision = client.revision(source.repo, source.revision)
    free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.is_dir())).free
    if known and (known.repo, known.commit) == (source.repo, revision.commit) and not known.find_faults(folder):
        return Plan(source, revision, known.files, free=free, is_done=True)
    tree = client.tree(source.repo, revision.commit)
    files = choose_files(source.repo, tree)
    download = Download(client, source.repo, revision.commit, folder, lambda *_: None)
    left_out = tuple(sorted(file.path for file in tree if file not in files))
    return Plan(source, revision, tuple(files), left_out, sum(file.size - download.have(file) for file in files), free)


def fetch(client: HubClient, plan: Plan, folder: Path, judge: Judge, on_bytes: OnBytes, jobs: int = 4) -> int:
    """Carry out a plan, and return how many bytes were moved.

    Args:
        client: speaks with the hub.
        plan: of `plan_fetch`.
        folder: where to; the caller keeps other processes out.
        judge: takes a folder with the checkpoint's small files and the headers of its weights, and raises if the
            loader would refuse it.
        on_bytes: takes a file and how many of its bytes are there, from several threads.
        jobs: files at a time.

    Raises:
        HubError: the hub refuses, cannot be reached, or sends what is not right; a rerun goes on where it stopped.
        CheckpointError: the loader refuses the checkpoint; no weights were moved.
        ConfigError: the disk is full, or the folder cannot be written to.
    """
    if plan.is_done:
        return 0
    if plan.to_move > plan.free:
        raise ConfigError(
            f"{plan.source.repo} needs {plan.to_move:,} bytes more in {folder}, whose disk has {plan.free:,} free; "
            "make room, or name another folder by --to"
        )
    repo, commit = plan.source.repo, plan.revision.commit

    def report(file: HubFile, done: int) -> None:
        if client.stopped.is_set():
            raise HubError("the fetch was stopped; run again to go on")
        on_bytes(file, done)

    known = read_source(folder)
    with write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / UNFINISHED, {"repo": repo, "commit": commit, "endpoint": client.endpoint})
    download = Download(client, repo, commit, folder, report)
    moved = _fetch_all(download, [file for file in plan.files if not file.is_weights], jobs)
    weights = [file for file in plan.files if file.is_weights]
    _judge(download, plan.files, judge)
    moved += _fetch_all(download, weights, jobs)
    _finish(plan, client.endpoint, folder, known)
    return moved


def _fetch_all(download: Download, files: Iterable[HubFile], jobs: int) -> int:
    """Fetch files side by side; the first failure stops the others at their next piece."""
    with ThreadPoolExecutor(jobs, thread_name_prefix="nvila_fetch") as pool:
        futures = [pool.submit(download.fetch, file) for file in files]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [future for future in done if future.exception()]
        finally:
            # Also where the user interrupts: every thread ends at its next piece.
            if any(not future.done() for future in futures):
                download.client.stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
    return sum(future.result() for future in [*failed, *futures])


def _finish(plan: Plan, endpoint: str, folder: Path, known: Source | None) -> None:
    """Write where the files come from, and remove those of an earlier commit and what is left of other runs."""
    names = {file.path for file in plan.files}
    with write_errors(folder):
        for file in known.files if known else ():
            if file.path not in names:
                (folder / file.path).unlink(missing_ok=True)
        for partial in folder.rglob(f"*{PARTIAL}"):
            if re.search(r"\.[0-9a-f]{12}$", partial.stem):  # another's file may end alike
                partial.unlink()
    Source(plan.source.repo, plan.revision.commit, endpoint, plan.revision.licence, plan.files).write(folder)
    with write_errors(folder):
        (folder / UNFINISHED).unlink()


def _judge(download: Download, files: Sequence[HubFile], judge: Judge) -> None:
    """Show the loader the small files and, in files with holes for the weights, the headers of the large ones."""
    with tempfile.TemporaryDirectory(prefix="nvila_fetch_") as scratch:
        root = Path(scratch) / download.repo.rpartition("/")[2]
        for file in files:
            source, target = download.folder / file.path, root / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_file():
                target.symlink_to(source.absolute())
            else:
                with write_errors(target):
                    target.write_bytes(read_header(download, file))
                    os.truncate(target, file.size)
        try:
            judge(root)
        except CheckpointError as error:
            text = str(error).replace(f"{root}/", "").replace(str(root), download.repo)
            raise CheckpointError(f"{download.repo} would not load, so its weights were not fetched: {text}") from error


def read_header(download: Download, file: HubFile) -> bytes:
    """Return the first bytes of a weight file, its header among them.

    Raises:
        HubError: the hub cannot be reached, or the file is no safetensors.
    """
    data = _read_start(download, file, min(FIRST_BYTES, file.size))
    size = 8 + int.from_bytes(data[:8], "little")
    if len(data) < 8 or not 8 < size <= min(MAX_HEADER, file.size):
        raise HubError(f"{file.path} of {download.repo} is no safetensors: its header has {size - 8:,} bytes")
    return data if size <= len(data) else _read_start(download, file, size)


def _read_start(download: Download, file: HubFile, size: int) -> bytes:
    def read() -> bytes:
        reply = download.client.open(download.repo, download.commit, file, 0, size - 1)
        with closing(reply.body):
            try:
                data = reply.body.read(size)
            except NETWORK_ERRORS as error:
                raise TransientError(f"the connection broke in the header of {file.path}: {error}") from error
        if len(data) < size:
            raise TransientError(f"the connection ended in the header of {file.path}")
        return data

    return download.client.retry(read)


__all__ = ["SOURCE", "Plan", "fetch", "plan_fetch"]
