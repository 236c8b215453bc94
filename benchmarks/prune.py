"""DeltaLoss in small: half of a data set chosen by it, by chance and by clusters, against all of it.

Everything happens in the synthetic world, where it is known which samples are good. A base model is trained on some
kinds of question, with the tower of nvila-tiny; it is the small model of the scores and what every run starts from. The
large one is nvila-tiny. A data set holds easy samples (kinds that the base knows), helpful ones (kinds that it does
not) and wrong ones (false answers). Each way of choosing trains the base once on what it keeps, so half of the samples
take half of the steps, and the held-out questions of the evaluation suite are asked. Clusters are those of k-means over
what the base holds at the beginning of each answer; each gives as many samples, chosen by chance.

Every training run and every block of scores is kept in the work folder: run again to go on. Prints a table of means
over the seeds and, last, one JSON line with their spreads.

    .venv/bin/python -m benchmarks.prune --work DIR
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from rich.table import Table
from torch import nn

from nvila_ros.errors import ConfigError
from nvila_ros.loading import find_checkpoint
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.pipeline import load_perceiver
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.torch_engine import load_model
from nvila_ros.tools.evaluate import as_dict, score
from nvila_ros.tools.options import positive, print_json, share, wide_console
from nvila_ros.training.conversations.encoding import encode_sample
from nvila_ros.training.conversations.forward import told_hidden, told_log_probs
from nvila_ros.training.conversations.packing import join, pack
from nvila_ros.training.conversations.planted import PLANTS, Plan, PlantedWorld, share_by_plant
from nvila_ros.training.conversations.samples import Sample
from nvila_ros.training.conversations.stream import Conversations, Tally
from nvila_ros.training.pruning import Scorer
from nvila_ros.training.save import save_checkpoint
from nvila_ros.training.score_files import ScoreFolder
from nvila_ros.training.score_run import Job, choose, gather, score_blocks
from nvila_ros.training.staging import staged
from nvila_ros.training.tiny import new_model

LARGE = "nvila-tiny"
BASE_SEED = 1023  # the data sets have seeds from 0
METHODS = ("all", "deltaloss", "random", "clusters")
NUM_CLUSTERS = 32
ROWS_PER_STEP, ROW_TOKENS = 8, 512  # longer rows spend more on attention than they save elsewhere
BASE_LR, LR = 1e-3, 4e-4
SETTINGS = ("samples", "base_samples", "base_turns", "keep", "shares", "easy", "helpful")


@dataclass(frozen=True, slots=True)
class Subset:
    """Some samples of a planted world, as a source."""

    world: PlantedWorld
    indices: np.ndarray
    name: str = "subset"

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Sample:
        """Return a sample of the subset."""
        return self.world.read(int(self.indices[index]))

    def line(self, index: int) -> bytes:
        """Return its record."""
        return self.world.line(int(self.indices[index]))

    def digest(self) -> str:
        """Return what stands for the world; a subset is never scored."""
        return self.world.digest()


def main() -> int:
    """Run the benchmark; returns the exit code."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    note_settings(args)
    base = train_base(args)
    results = [run_one(args, base, seed, method) for seed in range(args.seeds) for method in METHODS]
    told = {method: summarize([each for each in results if each["method"] == method]) for method in METHODS}
    wide_console().print(as_table(told))
    print_json({"benchmark": "prune", "seeds": args.seeds, "questions": args.questions, **settings(args), **told})
    return 0


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keeps all runs: run again to go on")
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="data sets (default: %(default)s)")
    parser.add_argument("--samples", type=positive, default=40000, metavar="N", help="of each (default: %(default)s)")
    parser.add_argument("--base-samples", type=positive, default=60000, metavar="N", help="default: %(default)s")
    parser.add_argument("--base-turns", type=positive, default=5, metavar="N", help="questions of each (default: 5)")
    parser.add_argument("--keep", type=share, default=0.5, metavar="S", help="share kept (default: 0.5)")
    parser.add_argument("--shares", default="0.4,0.2,0.4", help="of easy, wrong, helpful (default: %(default)s)")
    parser.add_argument("--easy", default="color,shape,count,exist", help="kinds of the base (default: %(default)s)")
    parser.add_argument("--helpful", default="where", help="kinds that it never saw (default: %(default)s)")
    parser.add_argument(
        "--questions", type=positive, default=300, metavar="N", help="asked of each kind (default: 300)"
    )
    parser.add_argument("--threads", type=positive, default=2)
    return parser.parse_args()


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what decides the training runs."""
    return {name: getattr(args, name) for name in SETTINGS}


def note_settings(args: argparse.Namespace) -> None:
    """Note the settings in the work folder, or see that they are those of the runs there.

    Raises:
        ConfigError: they are not.
    """
    path = args.work / "settings.json"
    if path.is_file() and json.loads(path.read_text()) != settings(args):
        raise ConfigError(f"{args.work} holds runs with other settings, {path.read_text()}; choose another --work")
    with staged(path) as part:
        part.write_text(json.dumps(settings(args)))


def world_of(args: argparse.Namespace, seed: int) -> PlantedWorld:
    """Return the data set of a seed; the base's holds what is easy alone."""
    easy, helpful = tuple(args.easy.split(",")), tuple(args.helpful.split(","))
    if seed == BASE_SEED:
        plan = Plan(
            num_samples=args.base_samples, seed=seed, shares=(1, 0, 0), easy_kinds=easy, num_turns=args.base_turns
        )
    else:
        shares = tuple(map(float, args.shares.split(",")))
        plan = Plan(num_samples=args.samples, seed=seed, shares=shares, easy_kinds=easy, helpful_kinds=helpful)
    return PlantedWorld(plan)


def train_base(args: argparse.Namespace) -> Path:
    """Return the base checkpoint, trained if it is not there yet."""
    path = args.work / "base"
    if not path.is_dir():
        model = new_model(seed=0)
        large = load_model(open_checkpoint(find_checkpoint(LARGE)))
        model.vision_tower.load_state_dict(large.vision_tower.state_dict())
        world = world_of(args, BASE_SEED)
        train(model, Subset(world, np.arange(len(world))), path, BASE_LR, "base")
    return path


def run_one(args: argparse.Namespace, base: Path, seed: int, method: str) -> dict[str, Any]:
    """Return the result of one run: chosen, trained and asked where an earlier call has not done so."""
    name = f"{method}-{seed}"
    path, result_path = args.work / name, args.work / f"{name}.{args.questions}.json"
    if result_path.is_file():
        return json.loads(result_path.read_text())
    world = world_of(args, seed)
    is_kept = select(args, base, world, method)
    if not path.is_dir():
        train(load_model(open_checkpoint(base)), Subset(world, np.flatnonzero(is_kept)), path, LR, name)
    kinds = dict.fromkeys([*args.easy.split(","), *args.helpful.split(",")])
    scores = score(load_perceiver(str(path), threads=args.threads), tuple(kinds), args.questions, lambda *_: None)
    shares = {f"kept_{plant}": value for plant, value in share_by_plant(world, is_kept).items()}
    result = {"method": method, "seed": seed, "kept": int(is_kept.sum()), **shares, **as_dict(scores)}
    with staged(result_path) as part:
        part.write_text(json.dumps(result))
    return result


def select(args: argparse.Namespace, base: Path, world: PlantedWorld, method: str) -> np.ndarray:
    """Return which samples a method keeps, (N,) bool."""
    rng = np.random.default_rng((world.plan.seed, METHODS.index(method)))
    num_kept = math.floor(args.keep * len(world) + 0.5)
    is_kept = np.zeros(len(world), bool)
    if method == "all":
        is_kept[:] = True
    elif method == "deltaloss":
        is_kept = select_by_score(args, base, world)
    elif method == "random":
        is_kept[rng.permutation(len(world))[:num_kept]] = True
    else:
        is_kept[spread(find_clusters(base, world), num_kept, rng)] = True
    return is_kept


def select_by_score(args: argparse.Namespace, base: Path, world: PlantedWorld) -> np.ndarray:
    """Return what DeltaLoss keeps, as `nvila prune` does."""
    large, small = (Scorer(open_checkpoint(path)) for path in (find_checkpoint(LARGE), base))
    job = Job(sources=(world,), large=large, small=small, row_tokens=ROW_TOKENS)
    folder = ScoreFolder(args.work / f"scores-{world.plan.seed}")
    folder.begin({"data": world.digest()})
    score_blocks(job, folder)
    return choose(gather(job, folder), "mean", args.keep)


@torch.inference_mode()
def find_clusters(base: Path, world: PlantedWorld) -> np.ndarray:
    """Return the cluster of each sample, (N,), over what the base holds at the beginning of its answer."""
    scorer = Scorer(open_checkpoint(base))
    found = []
    for group in pack(((i, scorer.encode(world.read(i))) for i in range(len(world))), ROW_TOKENS):
        row = join([sample for _, sample in group])
        first_told = np.searchsorted(row.told_owners, np.arange(len(group)))
        found.append(nn.functional.normalize(told_hidden(scorer.model, row))[first_told].numpy())
    features = np.concatenate(found).astype(np.float32)
    cv2.setRNGSeed(world.plan.seed)
    criteria = (cv2.TERM_CRITERIA_MAX_ITER, 50, 0.0)
    return cv2.kmeans(features, min(NUM_CLUSTERS, len(world)), None, criteria, 3, cv2.KMEANS_PP_CENTERS)[1].ravel()


def spread(clusters: np.ndarray, num_kept: int, rng: np.random.Generator) -> np.ndarray:
    """Return samples dealt from all clusters in turn, in each by chance; small ones run out first."""
    order = rng.permutation(len(clusters))
    place = np.empty(len(clusters), np.int64)
    for cluster in np.unique(clusters):
        mine = order[clusters[order] == cluster]
        place[mine] = np.arange(len(mine))
    return order[np.argsort(place[order], kind="stable")][:num_kept]


def train(model: Nvila, data: Subset, out: Path, peak_lr: float, name: str) -> None:
    """Train projector and decoder on each sample once, in an order of its own, and save the checkpoint."""
    torch.manual_seed(0)
    tokenizer_folder = open_checkpoint(find_checkpoint(LARGE)).tokenizer_folder
    tokenizer, started_s = ChatTokenizer.from_folder(tokenizer_folder), time.monotonic()
    model.train().requires_grad_()
    model.vision_tower.requires_grad_(False)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    conversations = Conversations([data], seed=0)
    read = conversations.encoded(lambda sample: encode_sample(model.spec, tokenizer, sample), Tally(is_strict=True))
    losses: list[float] = []
    for rows in in_groups(pack(read, ROW_TOKENS), ROWS_PER_STEP):
        done = rows[-1][-1][0] / len(conversations)
        set_rate(optimizer, peak_lr, done)
        logs = torch.cat([told_log_probs(model, join([sample for _, sample in row])) for row in rows])
        loss = -logs.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % 50 == 0:
            recent, spent_s = statistics.fmean(losses[-50:]), time.monotonic() - started_s
            print(f"{name}: {done:.0%} loss {recent:.3f} {spent_s:.0f} s", flush=True)
    save_checkpoint(model.eval(), tokenizer_folder, out)


def in_groups(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Yield lists of `size` items, the last may be shorter."""
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def set_rate(optimizer: torch.optim.Optimizer, peak_lr: float, done: float) -> None:
    """Warm up over a twentieth, then a cosine down to a fiftieth; `done` is the share of the samples."""
    rate = peak_lr * min(1.0, (done + 0.001) / 0.05) * (0.51 + 0.49 * math.cos(math.pi * done))
    for group in optimizer.param_groups:
        group["lr"] = rate


def summarize(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean of every number over the seeds, and of accuracies also the spread (standard deviation)."""
    names = [name for name in results[0] if name not in ("method", "seed")]
    means = {name: statistics.fmean(each[name] for each in results) for name in names}
    accuracies = [name for name in names if not name.startswith("kept")]
    spreads = {
        name: statistics.stdev(each[name] for each in results) if len(results) > 1 else 0.0 for name in accuracies
    }
    return {**means, "spread": spreads}


def as_table(told: dict[str, dict[str, Any]]) -> Table:
    """Return one row for each way of choosing: shares of each plant kept, and accuracies."""
    kinds = list(next(iter(told.values()))["spread"])
    table = Table("chosen by", "samples", *PLANTS, *kinds)
    for column in table.columns[1:]:
        column.justify = "right"
    for method, row in told.items():
        shares = [f"{row[f'kept_{plant}']:.2f}" if f"kept_{plant}" in row else "-" for plant in PLANTS]
        accuracies = [f"{row[kind]:.3f}" for kind in kinds]
        accuracies[-1] += f" +- {row['spread']['overall']:.3f}"
        table.add_row(method, f"{row['kept']:.0f}", *shares, *accuracies)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
