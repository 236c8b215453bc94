"""`nvila fetch`: a published checkpoint onto this machine, by name; without one, the table of all of them.

The one verb that uses the network, and only when it is typed. What it fetched, `--checkpoint`, the node's `model` and
recipes find by the same name.
"""

from __future__ import annotations

import argparse
import functools
import logging
from pathlib import Path

from rich.table import Table

from nvila_ros.builds.recipes import read_recipe
from nvila_ros.errors import CheckpointError, HubError
from nvila_ros.files import exclusive_lock
from nvila_ros.hub import settings
from nvila_ros.hub.client import HubClient
from nvila_ros.hub.fetch import Plan, fetch, plan_fetch
from nvila_ros.hub.files import HubFile
from nvila_ros.hub.local import Source, find_fetched, read_source
from nvila_ros.hub.published import HubSource, Published, find_published, find_source, published
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.variants import PRECISIONS, VARIANTS, weight_bytes
from nvila_ros.paths import fetched_folder, share_path
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.tools.options import positive, print_json, wide_console
from nvila_ros.tools.step_progress import StepProgress

GB = 1e9
PUBLISHED_COLUMNS = (
    "name", "repository", "what it is for", "licence", "GB", "memory, GB", "here", "backends", "known from"
)  # fmt: skip
_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="as NVILA-Lite-2B, or owner/name[@revision]")
    parser.add_argument("--to", type=Path, metavar="DIR", help="where to (default: the cache, found by NAME)")
    parser.add_argument("--endpoint", metavar="URL", help="of a mirror (default: HF_ENDPOINT, else huggingface.co)")
    parser.add_argument("--jobs", type=positive, default=4, metavar="N", help="files at a time (default: %(default)s)")
    parser.add_argument(
        "--dry-run", action="store_true", help="list files, sizes, free disk and licence; fetch nothing"
    )
    parser.add_argument("--verify", action="store_true", help="compare what was fetched with its digests; no network")
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    """Fetch; 1 if what was fetched is damaged.

    Raises:
        HubError: the hub refuses, cannot be reached, or sends what is not right.
        CheckpointError: the loader would refuse the checkpoint.
        ConfigError: the disk is full, or the folder cannot be written to.
    """
    logging.basicConfig(level=logging.WARNING if args.quiet else logging.INFO, format="%(message)s")
    if not args.name:
        print_published()
        return 0
    source = find_source(args.name)
    folder = args.to.expanduser() if args.to else fetched_folder(source.repo)
    if args.verify:
        return _verify(folder, args)
    if settings.is_offline():
        raise HubError(_offline(source, folder))
    client = HubClient(args.endpoint or settings.endpoint(), _token(args.endpoint), timeout_s=settings.timeout_s())
    plan = plan_fetch(client, source, folder)
    _log.info("%s", describe(plan, folder))
    if args.dry_run:
        _print_files(plan)
        return 0
    with (
        exclusive_lock(folder, work="fetch"),
        StepProgress(_steps(plan), says_done=False, is_shown=not args.quiet) as bars,
    ):
        moved = fetch(client, plan, folder, judge, lambda file, done: _report(bars, file, done), args.jobs)
    print_json({"folder": str(folder), "commit": plan.revision.commit, "bytes": plan.size, "moved_bytes": moved})
    return 0


def _token(endpoint: str | None) -> str:
    """Return the user's token; it is not for a host that was named for this call alone."""
    return settings.token() if endpoint in (None, settings.endpoint()) else ""


def judge(folder: Path) -> None:
    """Have the loader look at configs, tokenizer and headers of a checkpoint.

    Raises:
        CheckpointError: it would refuse it.
    """
    checkpoint = open_checkpoint(folder)
    checkpoint.weights()
    ChatTokenizer.from_folder(checkpoint.tokenizer_folder)


def describe(plan: Plan, folder: Path) -> str:
    """Return what a plan is about, for people."""
    licence = plan.revision.licence or "none; see its page"
    head = f"{plan.source.repo} at {plan.revision.commit[:12]}, licence tag: {licence}"
    row = find_published(plan.source.repo)
    if row and row.reason:
        head += f"; known to be refused: {row.reason}"
    if plan.is_done:
        return f"{head}; {folder} has it already"
    return (
        f"{head}; {len(plan.files)} files, {plan.size / GB:.2f} GB, of which {plan.to_move / GB:.2f} GB are to be "
        f"moved into {folder}, whose disk has {plan.free / GB:.1f} GB free"
    )


def published_rows() -> list[tuple[str, ...]]:
    """Return a row for each published model, under `PUBLISHED_COLUMNS`."""
    return [_published_row(row) for row in published().values()]


def _published_row(row: Published) -> tuple[str, ...]:
    memory = ""
    if row.variant:
        sizes = [weight_bytes(VARIANTS[row.variant].spec, precision) for precision in PRECISIONS[1:]]
        memory = " / ".join(f"{sum(size.values()) / GB:.1f}" for size in sizes)
    return (
        row.name,
        row.repo,
        row.purpose,
        row.licence or "none seen",
        f"{row.size_gb:.1f}" if row.size_gb else "",
        memory,
        row.state if row.state == "loads" else f"refused: {row.reason}",
        _backends(row),
        row.verified,
    )


def _backends(row: Published) -> str:
    """Return what runs a model: each backend by the kind of its config, and tensorrt by a recipe of its device."""
    if row.state == "refused":
        return ""
    if not row.variant:
        return "all, once its config is read"
    devices = sorted(device for model, device in _recipes() if model == row.variant)
    return f"all; recipes {', '.join(devices)}" if devices else "all; tensorrt by a recipe of yours"


@functools.cache
def _recipes() -> tuple[tuple[str, str], ...]:
    """Return model and device of each recipe."""
    recipes = map(read_recipe, share_path("engines").glob("*.yaml"))
    return tuple((recipe.model, recipe.device) for recipe in recipes)


def print_published() -> None:
    """Print the table of all published models, and which of them are here."""
    shown = ("name", "what it is for", "licence", "GB")
    table = Table(*shown, "here", box=None)
    for row, cells in zip(published().values(), published_rows(), strict=True):
        here = "refused" if row.state == "refused" else "fetched" if find_fetched(row.name) else ""
        by_column = dict(zip(PUBLISHED_COLUMNS, cells, strict=True))
        table.add_row(*(by_column[name] for name in shown), here)
    wide_console().print(table)


def _print_files(plan: Plan) -> None:
    table = Table("bytes", "file", box=None)
    table.columns[0].justify = "right"
    for file in plan.files:
        table.add_row(f"{file.size:,}", file.path)
    wide_console().print(table)
    if plan.left_out:
        print(f"left out: {', '.join(plan.left_out)}")


def _verify(folder: Path, args: argparse.Namespace) -> int:
    source = read_source(folder)
    if source is None:
        raise CheckpointError(f"{folder} has no finished checkpoint that was fetched; run: nvila fetch {args.name}")
    steps = [file.path for file in source.files if file.is_weights]
    with StepProgress(steps, says_done=False, is_shown=not args.quiet) as bars:
        faults = source.find_faults(folder, lambda file, done: _report(bars, file, done))
    for fault in faults:
        print(f"fault: {fault}")
    print_json({"folder": str(folder), "commit": source.commit, "files": len(source.files), "faults": len(faults)})
    return int(bool(faults))


def _offline(source: HubSource, folder: Path) -> str:
    """Return why nothing is fetched, and what there is."""
    found: Source | None = read_source(folder)
    cached = settings.cached_snapshot(source.repo, source.revision)
    have = f"{folder} has commit {found.commit[:12]}" if found else f"{cached} is in the hub's cache" if cached else ""
    return f"HF_HUB_OFFLINE forbids the network; {have or f'{source.repo} is not on this machine'}"


def _steps(plan: Plan) -> list[str]:
    return [file.path for file in plan.files if file.is_weights and not plan.is_done]


def _report(bars: StepProgress, file: HubFile, done: int) -> None:
    if file.is_weights:
        bars.advance(file.path, done, max(file.size, 1), f"{done / GB:.2f} of {file.size / GB:.2f} GB")
