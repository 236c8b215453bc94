"""Train nvila-tiny from nothing: dense labels for the tower, then questions on images, then on clips.

Question answering alone does not get off the ground (colour 0.65, shape at chance after 60,000 images), so the tower
first learns what lies under each patch. Motion is alike: asked about alone, it stays at chance for 6,000 clips, so the
decoder learns densely how what lies under each visual token has moved. Every stage is deterministic in its step, saves
its state at intervals and goes on from there when run again.
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
from nvila_ros.models.spec import ModelSpec
from nvila_ros.prompt.chat import PLACEHOLDER
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.batches import IGNORE, Batch, Batches, Mix
from nvila_ros.training.save import save_checkpoint
from nvila_ros.training.scenes import COLORS, DIRECTIONS, SHAPES
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
    Stage("images", Mix(("images",), 1 << 20, 64), 1450, 1e-3, 7e-4),
    Stage("clips", Mix(("images", "clips"), 1 << 24, 64, 24, num_turns=6), 1000, 8e-4, 5e-4),
)
SAVE_EVERY = 100
WARMUP_STEPS = 100


class Heads(nn.Module):
    """Linear read-outs that teach densely what the questions teach sparsely; thrown away after the training."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.color = nn.Linear(spec.vision.width, len(COLORS) + 1)
        self.shape = nn.Linear(spec.vision.width, len(SHAPES) + 1)
        self.motion = nn.Linear(spec.decoder.width, len(DIRECTIONS) + 1)


def train(out: Path, work: Path, *, seed: int = 0, num_workers: int = 2, stages: tuple[Stage, ...] = STAGES) -> None:
    """Train all stages and write the checkpoint to `out`; `work` holds the state to go on from.

    Raises:
        ConfigError: the loss became NaN, or `work` holds another run's state.
    """
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer" / "added_tokens.json").is_file():
        write_tokenizer(work / "tokenizer")
    model, heads = new_model(seed), Heads(SPEC)
    for stage in stages:
        _run_stage(stage, model, heads, work, num_workers)
        save_checkpoint(model, work / "tokenizer", out)


def _run_stage(stage: Stage, model: Nvila, heads: Heads, work: Path, num_workers: int) -> None:
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


def _loss(model: Nvila, heads: Heads, batch: Batch) -> tuple[Tensor, float]:
    """Return the loss and the share of right predictions: of answer tokens, or else of objects' patches."""
    tile_NCHW = torch.from_numpy(batch.tile_BFHWC).flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1
    feat_NPE = model.vision(tile_NCHW)
    # The dense labels go on teaching beside the questions: shapes are learned slowly.
    loss, right = _patch_loss(heads, feat_NPE, batch)
    if batch.ids_BL is None:
        return loss, right
    told_loss, right = _chat_loss(model, heads, feat_NPE, batch)
    return loss + told_loss, right


def _chat_loss(model: Nvila, heads: Heads, feat_NPE: Tensor, batch: Batch) -> tuple[Tensor, float]:
    ids_BL, labels_BL = torch.from_numpy(batch.ids_BL), torch.from_numpy(batch.labels_BL)
    is_visual_BL = ids_BL == PLACEHOLDER
    embeds_BLD = model.llm.embed(ids_BL.clamp(min=0))
    embeds_BLD = embeds_BLD.masked_scatter(is_visual_BL[..., None], model.project(feat_NPE))
    hidden_BLD, before_last_BLD = _decode(model, embeds_BLD)
    is_told = labels_BL != IGNORE
    logits_TV = model.llm.head(hidden_BLD[is_told])
    loss = functional.cross_entropy(logits_TV, labels_BL[is_told])
    if batch.tile_BFHWC.shape[1] > 1:
        motion = heads.motion(before_last_BLD[is_visual_BL])
        loss = loss + functional.cross_entropy(motion, torch.from_numpy(batch.motion_NG).flatten())
    return loss, (logits_TV.argmax(-1) == labels_BL[is_told]).float().mean().item()


def _decode(model: Nvila, embeds_BLD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the hidden states and those before the last layer, where an answer's last look still finds them."""
    seen: list[Tensor] = []
    handle = model.llm.model["layers"][-2].register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        hidden_BLD = model.llm(embeds_BLD)
    finally:
        handle.remove()
    return hidden_BLD, seen[0]


def _patch_loss(heads: Heads, feat_NPE: Tensor, batch: Batch) -> tuple[Tensor, float]:
    color_NP, shape_NP = torch.from_numpy(batch.color_NP), torch.from_numpy(batch.shape_NP)
    color, shape = heads.color(feat_NPE), heads.shape(feat_NPE)
    loss = functional.cross_entropy(color.flatten(0, 1), color_NP.flatten())
    loss = loss + functional.cross_entropy(shape.flatten(0, 1), shape_NP.flatten())
    hits = ((color.argmax(-1) == color_NP) & (shape.argmax(-1) == shape_NP))[color_NP > 0]
    return loss, hits.float().mean().item()


def _optimizer(stage: Stage, model: Nvila, heads: Heads) -> torch.optim.AdamW:
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


def _resume(path: Path, stage: Stage, model: Nvila, heads: Heads, optimizer: torch.optim.Optimizer) -> int:
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


def _save(path: Path, step: int, model: Nvila, heads: Heads, optimizer: torch.optim.Optimizer) -> None:
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
