"""Train nvila-tiny from nothing: dense labels for the tower, then questions on images, then on clips.

Question answering alone does not get off the ground (colour 0.65, shape at chance after 60,000 images), so the tower
first learns what lies under each patch. Every stage is deterministic in its step, saves its state at intervals and goes
on from there when run again.
"""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from nvila_ros.errors import ConfigError
from nvila_ros.models.nvila import Nvila
from nvila_ros.prompt.chat import PLACEHOLDER
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.batches import IGNORE, Batch, Batches, Mix
from nvila_ros.training.save import save_checkpoint
from nvila_ros.training.scenes import COLORS, SHAPES
from nvila_ros.training.tiny import SPEC, new_model, write_tokenizer

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Stage:
    """One leg of the training.

    Attributes:
        tower_lr: peak learning rate of the tower; the others' is `lr`.
    """

    name: str
    mix: Mix
    num_steps: int
    lr: float
    tower_lr: float


STAGES = (
    Stage("tower", Mix(("dense",), 0, 64), 1500, 1e-3, 1e-3),
    Stage("images", Mix(("images",), 1 << 20, 64), 900, 1e-3, 7e-4),
    Stage("clips", Mix(("images", "clips"), 1 << 24, 64, 24, num_turns=6), 1200, 8e-4, 5e-4),
)
SAVE_EVERY = 100
WARMUP_STEPS = 100


class PatchHeads(nn.Module):
    """Two linear read-outs of the tower's features, thrown away after the first stage."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.color = nn.Linear(width, len(COLORS) + 1)
        self.shape = nn.Linear(width, len(SHAPES) + 1)


def train(out: Path, work: Path, *, seed: int = 0, num_workers: int = 2, stages: tuple[Stage, ...] = STAGES) -> None:
    """Train all stages and write the checkpoint to `out`; `work` holds the state to go on from.

    Raises:
        ConfigError: the loss became NaN, or `work` holds another run's state.
    """
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer" / "added_tokens.json").is_file():
        write_tokenizer(work / "tokenizer")
    model, heads = new_model(seed), PatchHeads(SPEC.vision.width)
    for stage in stages:
        _run_stage(stage, model, heads, work, num_workers)
        save_checkpoint(model, work / "tokenizer", out)


def _run_stage(stage: Stage, model: Nvila, heads: PatchHeads, work: Path, num_workers: int) -> None:
    optimizer = _optimizer(stage, model, heads)
    state_path = work / f"{stage.name}.pt"
    start = _resume(state_path, stage, model, heads, optimizer)
    if start >= stage.num_steps:
        return
    vision = SPEC.vision
    tokenizer = ChatTokenizer.from_folder(work / "tokenizer")
    data = Batches(stage.mix, tokenizer, vision.image_px, vision.grid, SPEC.tokens_per_tile)
    loader = DataLoader(data, batch_size=None, sampler=range(start, stage.num_steps), num_workers=num_workers)
    with _Report(stage, start) as report:
        for step, batch in enumerate(loader, start):
            _set_rate(optimizer, step, stage.num_steps)
            loss, hits = _loss(model, heads, batch)
            if not math.isfinite(loss.item()):
                raise ConfigError(
                    f"loss is {loss.item()} at step {step} of stage {stage.name}; lower its lr {stage.lr}"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            report(step + 1, loss.item(), hits)
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.num_steps:
                _save(state_path, step + 1, model, heads, optimizer)


def _loss(model: Nvila, heads: PatchHeads, batch: Batch) -> tuple[Tensor, float]:
    """Return the loss and the share of right predictions: of answer tokens, or else of objects' patches."""
    tile_NCHW = torch.from_numpy(batch.tile_BFHWC).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    feat_NPE = model.vision(tile_NCHW)
    if batch.ids_BL is None:
        return _dense_loss(heads, feat_NPE, batch)
    loss, right = _chat_loss(model, feat_NPE, batch)
    if batch.color_BP is not None:
        # Shapes are learned slowly: the dense labels go on teaching them beside the questions.
        loss = loss + _dense_loss(heads, feat_NPE, batch)[0]
    return loss, right


def _chat_loss(model: Nvila, feat_NPE: Tensor, batch: Batch) -> tuple[Tensor, float]:
    ids_BL, labels_BL = torch.from_numpy(batch.ids_BL), torch.from_numpy(batch.labels_BL)
    embeds_BLD = model.llm.embed(ids_BL.clamp(min=0))
    embeds_BLD = embeds_BLD.masked_scatter((ids_BL == PLACEHOLDER)[..., None], model.project(feat_NPE))
    is_told = labels_BL != IGNORE
    logits_TV = model.llm.head(model.llm(embeds_BLD)[is_told])
    loss = functional.cross_entropy(logits_TV, labels_BL[is_told])
    return loss, (logits_TV.argmax(-1) == labels_BL[is_told]).float().mean().item()


def _dense_loss(heads: PatchHeads, feat_NPE: Tensor, batch: Batch) -> tuple[Tensor, float]:
    color_BP, shape_BP = torch.from_numpy(batch.color_BP), torch.from_numpy(batch.shape_BP)
    color, shape = heads.color(feat_NPE), heads.shape(feat_NPE)
    loss = functional.cross_entropy(color.flatten(0, 1), color_BP.flatten())
    loss = loss + functional.cross_entropy(shape.flatten(0, 1), shape_BP.flatten())
    is_object = color_BP > 0
    hits = ((color.argmax(-1) == color_BP) & (shape.argmax(-1) == shape_BP))[is_object]
    return loss, hits.float().mean().item()


def _optimizer(stage: Stage, model: Nvila, heads: PatchHeads) -> torch.optim.AdamW:
    tower = list(model.vision_tower.parameters())
    others = [*model.mm_projector.parameters(), *model.llm.parameters(), *heads.parameters()]
    groups = [{"params": tower, "peak_lr": stage.tower_lr}, {"params": others, "peak_lr": stage.lr}]
    return torch.optim.AdamW(groups, lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.01)


def _set_rate(optimizer: torch.optim.Optimizer, step: int, num_steps: int) -> None:
    """Linear warm-up, then a cosine down to a fiftieth."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    cosine = 0.51 + 0.49 * math.cos(math.pi * step / num_steps)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * warm * cosine


def _resume(path: Path, stage: Stage, model: Nvila, heads: PatchHeads, optimizer: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise ConfigError(f"{path} is the state of another model; remove it or choose another --work") from error
    heads.load_state_dict(state["heads"])
    optimizer.load_state_dict(state["optimizer"])
    _log.info("stage %s goes on from step %d", stage.name, state["step"])
    return state["step"]


def _save(path: Path, step: int, model: Nvila, heads: PatchHeads, optimizer: torch.optim.Optimizer) -> None:
    state = {
        "step": step,
        "model": model.state_dict(),
        "heads": heads.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    staged = path.with_suffix(".part")
    torch.save(state, staged)
    os.replace(staged, path)


class _Report:
    """A live bar on a terminal; one line every 50 steps where nobody watches. Figures are means over 50 steps."""

    def __init__(self, stage: Stage, start: int) -> None:
        self.stage = stage
        columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        self.bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[figures]}"))
        self.bar.disable = not self.bar.console.is_terminal
        self.task = self.bar.add_task(stage.name, total=stage.num_steps, completed=start, figures="")
        self.recent: deque[tuple[float, float]] = deque(maxlen=50)

    def __enter__(self) -> _Report:
        self.bar.start()
        return self

    def __exit__(self, *args: object) -> None:
        self.bar.stop()

    def __call__(self, step: int, loss: float, hits: float) -> None:
        self.recent.append((loss, hits))
        mean_loss, mean_hits = np.mean(self.recent, axis=0)
        figures = f"loss {mean_loss:.3f} right {mean_hits:.3f}"
        self.bar.update(self.task, completed=step, figures=figures)
        if self.bar.disable and step % 50 == 0:
            print(f"{self.stage.name} {step}/{self.stage.num_steps} {figures}", flush=True)
