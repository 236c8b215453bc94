"""Training in FP8 against training in bf16: losses, bytes, and on a GPU the speed of what NVILA's decoders are made of.

The projector and the decoder of nvila-tiny learn from nothing to answer questions about the synthetic world, over the
tower of the checkpoint, which stays as it is. Both precisions read the same rows in the same order from the same
weights, compute in bf16 on float32 masters, and differ in this alone: `fp8` converts the decoder's maps, norms and
gates, and steps with `Fp8AdamW`. A seed is an initialization and an order.

Every run is kept in the work folder: run again to go on. Prints a table, draws the losses and, last, one JSON line.

    .venv/bin/python -m benchmarks.fp8 --work DIR
    .venv/bin/python -m benchmarks.fp8 --work DIR --device cuda --speed
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.fp8_speed import measure_speed
from nvila_ros.errors import ConfigError
from nvila_ros.files import atomic_file
from nvila_ros.models.checkpoint import open_checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.loading import find_checkpoint
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.tools.charts import BLUE, ORANGE, new_charts, save_chart, styled
from nvila_ros.tools.options import positive, print_json, whole, wide_console
from nvila_ros.training.conversations.encoding import EncodedSample, encode_sample
from nvila_ros.training.conversations.forward import learned_log_probs
from nvila_ros.training.conversations.packing import PackedRow, join, pack
from nvila_ros.training.conversations.planted import PlantedSpec, PlantedWorld
from nvila_ros.training.fp8 import Fp8AdamW, convert_linears
from nvila_ros.training.tiny import SPEC, new_model

CHECKPOINT = "nvila-tiny"
PRECISIONS = ("bf16", "fp8")
KINDS = ("color", "shape", "count", "exist", "where")
PEAK_LR, NUM_HELD_OUT_ROWS = 1e-3, 12
TRAIN_SEED, HELD_OUT_SEED = 900, 901
TOKENS_PER_SAMPLE = 90  # less than any draw gives on average, so that there are rows enough
SETTINGS = ("device", "steps", "row_tokens")


class EncodedWorld(Dataset):
    """Samples of a planted world, drawn and encoded."""

    def __init__(self, num_samples: int, seed: int) -> None:
        self.world = PlantedWorld(
            PlantedSpec(num_samples=num_samples, seed=seed, shares=(1, 0, 0), easy_kinds=KINDS, num_turns=5)
        )
        self.tokenizer = ChatTokenizer.from_folder(open_checkpoint(find_checkpoint(CHECKPOINT)).tokenizer_folder)

    def __len__(self) -> int:
        return len(self.world)

    def __getitem__(self, index: int) -> tuple[int, EncodedSample]:
        return index, encode_sample(SPEC, self.tokenizer, self.world.read(index))


def main() -> int:
    """TrainingRun the benchmark; returns the exit code."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    figures: dict[str, Any] = {"benchmark": "fp8", "device": device_name(args.device), "torch": torch.__version__}
    if args.seeds:
        note_settings(args)
        results = run_all(args)
        figures |= {"steps": args.steps, "row_tokens": args.row_tokens, **summarize(results)}
        wide_console().print(as_table(figures))
        if args.picture:
            save_chart(args.picture, draw_losses(results))
    if args.speed:
        figures["speed"] = measure_speed(use_compiler=args.compile)
    print_json(figures)
    return 0


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keeps all runs: run again to go on")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seeds", type=whole, default=3, metavar="N", help="0 trains nothing (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=200, metavar="N", help="default: %(default)s")
    parser.add_argument("--row-tokens", type=positive, default=2048, metavar="N", help="of a step (default: 2048)")
    parser.add_argument("--workers", type=whole, default=0, metavar="N", help="processes that draw (default: none)")
    parser.add_argument("--threads", type=positive, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="where to draw the losses")
    parser.add_argument("--speed", action="store_true", help="time layers of NVILA's sizes; needs a GPU")
    parser.add_argument("--compile", action="store_true", help="with --speed: also what torch.compile makes of them")
    args = parser.parse_args()
    if args.speed and args.device != "cuda":
        parser.error("--speed measures a GPU: add --device cuda")
    return args


def device_name(device: str) -> str:
    """Return the name of the GPU, or `cpu`."""
    return torch.cuda.get_device_name() if device == "cuda" else "cpu"


def note_settings(args: argparse.Namespace) -> None:
    """Note the settings in the work folder, or see that they are those of the runs there.

    Raises:
        ConfigError: they are not.
    """
    path, mine = args.work / "settings.json", {name: getattr(args, name) for name in SETTINGS}
    args.work.mkdir(parents=True, exist_ok=True)
    if path.is_file() and json.loads(path.read_text()) != mine:
        raise ConfigError(f"{args.work} holds runs with other settings, {path.read_text()}; choose another --work")
    with atomic_file(path) as part:
        part.write_text(json.dumps(mine))


def run_all(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the results of all runs; those that an earlier call finished are read."""
    rows: list[PackedRow] = []
    held_out: list[PackedRow] = []
    results = []
    for seed in range(args.seeds):
        for precision in PRECISIONS:
            path = args.work / f"{precision}-{seed}.json"
            if not path.is_file():
                rows = rows or draw_rows(TRAIN_SEED, args.steps, args)
                held_out = held_out or draw_rows(HELD_OUT_SEED, NUM_HELD_OUT_ROWS, args)
                result = run_one(precision, seed, rows, held_out, torch.device(args.device))
                with atomic_file(path) as part:
                    part.write_text(json.dumps(result))
            results.append(json.loads(path.read_text()))
    return results


def draw_rows(seed: int, num_rows: int, args: argparse.Namespace) -> list[PackedRow]:
    """Return rows of whole samples."""
    samples = EncodedWorld(num_rows * args.row_tokens // TOKENS_PER_SAMPLE + 64, seed)
    loader = DataLoader(samples, batch_size=None, num_workers=args.workers)
    rows = []
    for group in pack(loader, args.row_tokens):
        rows.append(join([sample for _, sample in group]))
        if len(rows) == num_rows:
            return rows
    raise AssertionError(f"{len(samples)} samples fill {len(rows)} of {num_rows} rows")


def run_one(
    precision: str, seed: int, rows: list[PackedRow], held_out: list[PackedRow], device: torch.device
) -> dict[str, Any]:
    """Train once and return the losses and the bytes."""
    run = TrainingRun(precision, seed, device)
    order, started_s, losses = np.random.default_rng(seed).permutation(len(rows)), time.monotonic(), []
    for step, index in enumerate(order.tolist()):
        losses.append(run.step(rows[index], step / len(rows)))
        if (step + 1) % 50 == 0:
            recent = statistics.fmean(each.item() for each in losses[-50:])
            print(f"{precision}-{seed} {step + 1}/{len(rows)} loss {recent:.4f}", flush=True)
    spent_s = time.monotonic() - started_s
    return {
        "precision": precision,
        "seed": seed,
        "losses": [each.item() for each in losses],
        "held_out": run.evaluate(held_out),
        "state_bytes": state_bytes(run.optimizer),
        "saved_bytes": saved_bytes(run.model, rows[0]),
        "num_weights": sum(master.numel() for master in run.masters),
        "num_tokens": len(rows[0].ids_L),
        "step_ms": 1e3 * spent_s / len(rows),
    }


class TrainingRun:
    """A model in bf16, the float32 masters of what it learns, and what steps on them."""

    def __init__(self, precision: str, seed: int, device: torch.device) -> None:
        model = new_model(seed).requires_grad_()
        tower = load_torch_model(open_checkpoint(find_checkpoint(CHECKPOINT))).vision_tower
        model.vision_tower.load_state_dict(tower.state_dict())
        model.vision_tower.requires_grad_(False)
        self.model: Nvila = model.to(device).train()
        learned = [*model.mm_projector.parameters(), *model.llm.parameters()]
        self.masters = [parameter.detach().clone() for parameter in learned]
        self.model.bfloat16()
        self.copies = [*model.mm_projector.parameters(), *model.llm.parameters()]
        settings = {"lr": PEAK_LR, "betas": (0.9, 0.98), "weight_decay": 0.01}
        if precision == "fp8":
            convert_linears(self.model.llm)
            self.optimizer: torch.optim.Optimizer = Fp8AdamW(self.masters, **settings)
        else:
            self.optimizer = torch.optim.AdamW(self.masters, **settings)

    def step(self, row: PackedRow, done: float) -> Tensor:
        """Learn a row; `done` is the share of the run. Returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = PEAK_LR * min(1.0, (done + 0.002) / 0.05) * (0.51 + 0.49 * math.cos(math.pi * done))
        loss = -learned_log_probs(self.model, row).mean()
        loss.backward()
        for master, copy in zip(self.masters, self.copies, strict=True):
            assert copy.grad is not None
            master.grad, copy.grad = copy.grad.float(), None
        nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_copy_(self.copies, self.masters)
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, rows: list[PackedRow]) -> float:
        """Return the mean loss of a learned token."""
        logs = torch.cat([learned_log_probs(self.model, row) for row in rows])
        return -logs.mean().item()


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of the optimizer's states, without its counts of steps."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors if tensor.dim())


def saved_bytes(model: Nvila, row: PackedRow) -> int:
    """Return the bytes that autograd keeps of the decoder's pass over a row for its backward pass, without weights.

    The row is one causal sequence here: some GPUs keep whole maps of attention where samples have borders.
    """
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack_tensor(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)  # held, so that no address comes twice
        return tensor

    embeds = model.llm.embed(torch.from_numpy(row.ids_L).clamp(min=0).to(next(model.parameters()).device))[None]
    with torch.autograd.graph.saved_tensors_hooks(pack_tensor, lambda tensor: tensor), embeds.device:
        model.llm(embeds)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in weights)


def summarize(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means and spreads (standard deviation) by precision, and how far fp8 is from bf16 at the same seed."""
    figures: dict[str, Any] = {}
    for precision in PRECISIONS:
        mine = [each for each in results if each["precision"] == precision]
        figures[precision] = {
            name: statistics.fmean(each[name] for each in mine)
            for name in ("held_out", "state_bytes", "saved_bytes", "step_ms")
        }
        figures[precision]["last_losses"] = statistics.fmean(last_loss(each) for each in mine)
        figures[precision]["spread"] = statistics.stdev(each["held_out"] for each in mine) if len(mine) > 1 else 0.0
    for name in ("num_weights", "num_tokens"):
        figures[name] = results[0][name]
    pairs = zip(results[::2], results[1::2], strict=True)  # bf16 and fp8 of each seed
    figures["differences"] = [fp8["held_out"] - bf16["held_out"] for bf16, fp8 in pairs]
    return figures


def last_loss(result: dict[str, Any]) -> float:
    """Return the mean training loss of the last tenth of the steps."""
    return statistics.fmean(result["losses"][-max(1, len(result["losses"]) // 10) :])


def as_table(figures: dict[str, Any]) -> Table:
    """Return a row for each precision."""
    table = Table("precision", "held-out loss", "last losses", "state B/weight", "decoder keeps B/token", "ms/step")
    for column in table.columns[1:]:
        column.justify = "right"
    for precision in PRECISIONS:
        row = figures[precision]
        table.add_row(
            precision,
            f"{row['held_out']:.4f} +- {row['spread']:.4f}",
            f"{row['last_losses']:.4f}",
            f"{row['state_bytes'] / figures['num_weights']:.3f}",
            f"{row['saved_bytes'] / figures['num_tokens']:.0f}",
            f"{row['step_ms']:.1f}",
        )
    table.caption = "fp8 - bf16 by seed: " + ", ".join(f"{each:+.4f}" for each in figures["differences"])
    return table


@styled
def draw_losses(results: list[dict[str, Any]]) -> Figure:
    """Draw the training losses of all runs by step, means over up to 10 steps, on a logarithmic scale."""
    figure, (axes,) = new_charts(1, 4.0)
    for result in results:
        line = {"color": ORANGE, "linestyle": "--"} if result["precision"] == "fp8" else {"color": BLUE}
        losses = np.array(result["losses"])
        width = min(10, len(losses))
        means = np.convolve(losses, np.full(width, 1 / width), mode="valid")
        label = result["precision"] if result["seed"] == 0 else None
        axes.plot(np.arange(width, len(losses) + 1), means, linewidth=1.3, label=label, **line)
    axes.set(title="training loss, each seed in both precisions", xlabel="step", ylabel="loss", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.legend()
    return figure


if __name__ == "__main__":
    raise SystemExit(main())
