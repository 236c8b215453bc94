"""DeltaLoss in small: half of a data set chosen by it, by chance and by clusters, against all of it.

Everything happens in the synthetic world, where it is known which samples are good. A base model is trained on some
kinds of question, with the tower of nvila-tiny; it is the small model of the scores and what every run starts from. The
large one is nvila-tiny. A data set is a mixture of tasks, as those that are learned from are: each kind of question is
a sub-dataset, those that the base knows (easy) and those that it does not (helpful), and in each the same share of the
answers is wrong. Each way of choosing trains the base on what it keeps, so half of the samples take half of the steps,
and the held-out questions of the evaluation suite are asked. DeltaLoss keeps half of each sub-dataset, and so does
chance; `mixed` is DeltaLoss of all samples as if they were one. Clusters are those of k-means over what the base holds
at the beginning of each sample's first answer; each gives as many samples, chosen by chance.

Samples are drawn once and kept as arrays, by `--processes` at a time; then the trainings run beside each other. Every
data set and every training run is kept in the work folder: run again to go on. Prints a table of means over the seeds
and, last, one JSON line with their spreads.

    .venv/bin/python -m benchmarks.prune --work DIR
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pruning.choosing import METHODS, score, select
from benchmarks.pruning.drawn import Cases, DrawnSet, Planted, draw_shard, finish, open_set, shards_of
from benchmarks.pruning.learning import is_right, learn
from benchmarks.pruning.processes import start, workers
from benchmarks.pruning.report import as_table, draw_figure, kept_shares, summarize
from nvila_ros.errors import ConfigError
from nvila_ros.files import atomic_file
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.tools.charts import save_chart
from nvila_ros.tools.options import positive, print_json, share, wide_console
from nvila_ros.training.conversations.planted import PlantedSpec, PlantedWorld
from nvila_ros.training.pruning import load_for_scoring
from nvila_ros.training.save import save_checkpoint
from nvila_ros.training.tiny import new_model

BASE_SEED = 1023  # the data sets have seeds from 0
BASE_LR, LR = 1e-3, 8e-4
SETTINGS = (
    *("samples", "turns", "epochs", "base_samples", "base_turns", "base_epochs"),
    *("batch", "keep", "wrong", "easy", "helpful", "large"),
)


def main() -> int:
    """Run the benchmark; returns the exit code."""
    args = parse_args()
    note_settings(args)
    missing = [job for job in jobs_of(args) if not result_path(args, *job).is_file()]
    if missing:
        run_all(args, missing)
    results = [json.loads(result_path(args, *job).read_text()) for job in jobs_of(args)]
    figures = {method: summarize([each for each in results if each["method"] == method]) for method in METHODS}
    base = json.loads(base_result_path(args).read_text())
    wide_console().print(as_table(figures, base))
    if args.figure:
        save_chart(args.figure, draw_figure(figures, args.helpful.split(",")))
    head = {"benchmark": "prune", "seeds": args.seeds, "questions": args.questions}
    print_json({**head, **settings(args), "base": base, **figures})
    return 0


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keeps all runs: run again to go on")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="write the accuracies as a picture")
    _add_settings(parser)
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="data sets (default: %(default)s)")
    parser.add_argument(
        "--questions", type=positive, default=300, metavar="N", help="asked of each kind (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="that learns and scores, cpu or cuda (default: %(default)s)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--processes", type=positive, default=cores, metavar="N", help="at a time (default: the cores)")
    parser.add_argument("--threads", type=positive, default=1, help="of each process (default: %(default)s)")
    return parser.parse_args()


def _add_settings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what decides the runs of a folder")
    for name, number, text in (
        ("--samples", 4000, "of each data set"),
        ("--turns", 2, "most questions of each"),
        ("--epochs", 2, "how often each is learned from"),
        ("--base-samples", 6000, "of what the base learns"),
        ("--base-turns", 4, "most questions of each"),
        ("--base-epochs", 4, "how often each is learned from"),
        ("--batch", 32, "samples of a step"),
    ):
        group.add_argument(name, type=positive, default=number, metavar="N", help=f"{text} (default: %(default)s)")
    group.add_argument("--keep", type=share, default=0.5, metavar="S", help="share kept (default: 0.5)")
    group.add_argument("--wrong", type=share, default=0.3, metavar="S", help="share with wrong answers (default: 0.3)")
    group.add_argument("--easy", default="color,shape,exist", help="kinds of the base (default: %(default)s)")
    group.add_argument("--helpful", default="count,count-color", help="kinds that it never saw (default: %(default)s)")
    group.add_argument(
        "--large", default="nvila-tiny", metavar="CKPT", help="large model, of nvila-tiny's sizes (default: it)"
    )


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
    with atomic_file(path) as part:
        part.write_text(json.dumps(settings(args)))


def jobs_of(args: argparse.Namespace) -> list[tuple[str, int]]:
    """Return method and seed of every run, the longest first."""
    return [(method, seed) for method in METHODS for seed in range(args.seeds)]


def result_path(args: argparse.Namespace, method: str, seed: int) -> Path:
    """Return where the result of a run is kept."""
    return args.work / f"{method}-{seed}.{args.questions}.json"


def base_result_path(args: argparse.Namespace) -> Path:
    """Return where it is kept how right the base answers."""
    return args.work / f"base.{args.questions}.json"


def run_all(args: argparse.Namespace, jobs: list[tuple[str, int]]) -> None:
    """Draw what is needed, train the base while the data sets are drawn, then run the jobs.

    Raises:
        NvilaError: of a process, whose error ends the run; what was finished is kept.
    """
    start(args.threads)
    sources = sources_of(args, sorted({seed for _, seed in jobs}))
    large = load(find_checkpoint(args.large), args.device)
    with workers(args.processes, args.threads) as pool:
        drawing = {
            folder: [pool.submit(draw_shard, source, *ends, folder, args.large) for ends in shards_of(source)]
            for folder, source in sources.items()
        }
        for folder, source in sources.items():
            for shard in drawing[folder]:
                shard.result()
            finish(source, folder, large)
            print(f"{folder.name}: {len(source)} drawn", flush=True)
            if folder.name == "base-set":
                train_base(args, large)
        with atomic_file(base_result_path(args)) as part:
            part.write_text(json.dumps(ask(args, args.work / "base")))
        for scoring in [pool.submit(score_set, args, seed) for seed in sorted({seed for _, seed in jobs})]:
            scoring.result()
        for running in [pool.submit(run_one, args, *job) for job in jobs]:
            running.result()


def sources_of(args: argparse.Namespace, seeds: list[int]) -> dict[Path, Planted | Cases]:
    """Return what is drawn, by the folder that keeps it; the base's holds what is easy alone, and comes first."""
    easy, helpful = tuple(args.easy.split(",")), tuple(args.helpful.split(","))
    base = PlantedSpec(
        num_samples=args.base_samples, seed=BASE_SEED, shares=(1, 0, 0), easy_kinds=easy, num_turns=args.base_turns
    )
    sources: dict[Path, Planted | Cases] = {
        args.work / "base-set": Planted(PlantedWorld(base)),
        args.work / f"cases-{args.questions}": Cases(kinds_of(args), args.questions),
    }
    right = (1 - args.wrong) / len(easy + helpful)  # share of each kind's right answers
    for seed in seeds:
        plan = PlantedSpec(
            num_samples=args.samples,
            seed=seed,
            shares=(right * len(easy), args.wrong, right * len(helpful)),
            easy_kinds=easy,
            helpful_kinds=helpful,
            num_turns=args.turns,
            is_split=True,
        )
        sources[args.work / f"set-{seed}"] = Planted(PlantedWorld(plan))
    return sources


def kinds_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the kinds of question that are asked."""
    return tuple(dict.fromkeys([*args.easy.split(","), *args.helpful.split(",")]))


def load(path: Path, device: str) -> Nvila:
    """Return a checkpoint's model in float32 on a device."""
    return load_for_scoring(open_checkpoint(path), torch.float32, device)


def save(args: argparse.Namespace, model: Nvila, path: Path) -> None:
    """Write a model with the tokenizer of the large one."""
    save_checkpoint(model.cpu(), open_checkpoint(find_checkpoint(args.large)).tokenizer_folder, path)


def train_base(args: argparse.Namespace, large: Nvila) -> None:
    """Train the base checkpoint if it is not there yet."""
    path = args.work / "base"
    if path.is_dir():
        return
    model = new_model(seed=0)
    model.vision_tower.load_state_dict(large.vision_tower.state_dict())
    drawn = open_set(args.work / "base-set")
    model.to(args.device)
    indices = np.arange(len(drawn))
    learn(model, drawn, indices, epochs=args.base_epochs, batch=args.batch, peak_lr=BASE_LR, name="base")
    save(args, model, path)


def score_set(args: argparse.Namespace, seed: int) -> None:
    """Write the score of each sample of a data set, unless it is there."""
    path = args.work / f"scores-{seed}.npy"
    if path.is_file():
        return
    large, small = load(find_checkpoint(args.large), args.device), load(args.work / "base", args.device)
    scores = score(open_set(args.work / f"set-{seed}"), large, small)
    with atomic_file(path) as part, part.open("wb") as file:
        np.save(file, scores)


def choose(args: argparse.Namespace, method: str, seed: int, drawn: DrawnSet, small: Nvila) -> np.ndarray:
    """Return which samples a method keeps, (N,) bool, as an earlier call chose or anew."""
    path = args.work / f"{method}-{seed}.kept.npy"
    if not path.is_file():
        scores = np.load(args.work / f"scores-{seed}.npy")
        is_kept = select(method, drawn, scores, small, keep=args.keep, seed=seed)
        with atomic_file(path) as part, part.open("wb") as file:
            np.save(file, is_kept)
    return np.load(path)


def run_one(args: argparse.Namespace, method: str, seed: int) -> None:
    """Write the result of one run: chosen, trained and asked where an earlier call has not done so."""
    name = f"{method}-{seed}"
    path, base = args.work / name, args.work / "base"
    drawn, small = open_set(args.work / f"set-{seed}"), load(base, args.device)
    is_kept = choose(args, method, seed, drawn, small)
    if not path.is_dir():
        indices = np.flatnonzero(is_kept)
        learn(small, drawn, indices, epochs=args.epochs, batch=args.batch, peak_lr=LR, name=name)
        save(args, small, path)
    shares = kept_shares(drawn, is_kept, kinds_of(args))
    result = {"method": method, "seed": seed, "kept": int(is_kept.sum()), **shares, **ask(args, path)}
    with atomic_file(result_path(args, method, seed)) as part:
        part.write_text(json.dumps(result))


def ask(args: argparse.Namespace, path: Path) -> dict[str, float]:
    """Return the share of the held-out questions that a checkpoint answers right, by kind and over all."""
    cases = open_set(args.work / f"cases-{args.questions}")
    answered = is_right(load(path, args.device), cases)
    accuracies = {kind: float(answered[cases.groups == number].mean()) for number, kind in enumerate(kinds_of(args))}
    return {**accuracies, "overall": float(answered.mean())}


if __name__ == "__main__":
    raise SystemExit(main())
