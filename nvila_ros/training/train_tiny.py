"""Train an embedded checkpoint by its recipe.

Every stage is deterministic in its step, saves its state at intervals and goes on from there when run again.

nvila-tiny comes from nothing: dense labels for the tower, then questions on images, then on clips. Question answering
alone does not get off the ground (colour 0.65, shape at chance after 60,000 images), so the tower first learns what
lies under each patch. Motion is alike: asked about alone, it stays at chance for 6,000 clips, so the decoder learns
densely how what lies under each visual token has moved. Left of and right of, asked about together, stay at chance for
half a million questions; left of comes first, then both. nvila-tiny-scale goes on from there with the tower left as it
is, and learns densely what happens under each visual token and which of two events came first.

All of that holds in a narrow world alone, and outside it the model is wrong and sure. So nvila-tiny ends with a stage
on the wide world (`world/wide_scenes.py`, `world/wide_questions.py`), where it also learns what it cannot answer.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.files import exclusive_lock, record_run
from nvila_ros.models.nvila import Nvila
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training.batches import Batch, Batches
from nvila_ros.training.losses import EncodeTiles, Heads, batch_loss
from nvila_ros.training.recipes import TrainingRecipe, TrainingStage
from nvila_ros.training.save import save_checkpoint
from nvila_ros.training.states import load_tensors, save_tensors
from nvila_ros.training.steps import LossOf, Stepper
from nvila_ros.world.photographs import check_photographs

_log = logging.getLogger(__name__)

SAVE_EVERY_S = 60.0
WARMUP_STEPS = 100
READ_EVERY = 10
OnSteps = Callable[[str, int, int, str], object]
"""Takes a stage's name, its steps that are done, all of them, and figures for people."""


def train(
    recipe: TrainingRecipe,
    out: Path,
    work: Path,
    *,
    seed: int = 0,
    num_workers: int = 2,
    device: str = "cpu",
    has_graphs: bool | None = None,
    on_progress: OnSteps = lambda stage, done, total, text: None,
) -> None:
    """Train all stages of a recipe and write the checkpoint to `out`; `work` holds the state to go on from.

    Args:
        recipe: of the checkpoint.
        out: folder of the checkpoint.
        work: folder of the state.
        seed: of what starts at random.
        num_workers: processes that draw batches; 0 draws them in between.
        device: that trains.
        has_graphs: whether steps are replayed as CUDA graphs; by default where there is a GPU.
        on_progress: called after every few steps.

    Raises:
        ConfigError: the loss became NaN, the disk is full, another run is at work in `work` or has left its state, or
            photographs that a stage shows are not installed.
        CheckpointError: the state is damaged or of another model.
    """
    has_graphs = device == "cuda" if has_graphs is None else has_graphs
    for stage in recipe.stages:
        if stage.mix.look is not None:
            check_photographs(stage.mix.look.photographs)
    with exclusive_lock(work):
        steps = {stage.name: stage.num_steps for stage in recipe.stages}
        record_run(work, {"model": recipe.spec.name, "seed": seed, "steps": steps})
        model = _new_model(recipe, work, seed).to(device).train().requires_grad_()
        heads = Heads(recipe.spec).to(device)
        for stage in recipe.stages:
            has_learned = _run_stage(recipe, stage, model, heads, work, num_workers, has_graphs, on_progress)
            if has_learned or stage is recipe.stages[-1]:  # what is there is not overwritten by a stage behind it
                save_checkpoint(model, work / "tokenizer", out)


def _new_model(recipe: TrainingRecipe, work: Path, seed: int) -> Nvila:
    if not (work / "tokenizer" / "added_tokens.json").is_file():
        recipe.write_tokenizer(work / "tokenizer")
    return recipe.new_model(seed)


def _run_stage(
    recipe: TrainingRecipe,
    stage: TrainingStage,
    model: Nvila,
    heads: Heads,
    work: Path,
    num_workers: int,
    has_graphs: bool,
    on_progress: OnSteps,
) -> bool:
    """Train a stage to its end; returns whether anything was left to do."""
    optimizer = _optimizer(stage, model, heads, has_graphs)
    state_path = work / f"{stage.name}.pt"
    start = _resume(state_path, stage, model, heads, optimizer)
    if start >= stage.num_steps:
        return False
    data = Batches(stage.mix, ChatTokenizer.from_folder(work / "tokenizer"), recipe.spec)
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=range(start, stage.num_steps),
        num_workers=num_workers,
        worker_init_fn=_use_one_thread,
    )
    step_on = Stepper(_loss_of(stage, model, heads), list(model.parameters()), optimizer, has_graphs=has_graphs)
    saved_s = time.monotonic()
    report = _Figures(stage, on_progress)
    for step, batch in enumerate(loader, start):
        _set_rate(optimizer, step, stage.num_steps)
        report(step + 1, *step_on(batch))
        if time.monotonic() - saved_s >= SAVE_EVERY_S or step + 1 == stage.num_steps:
            report.check()
            _save(state_path, step + 1, model, heads, optimizer)
            saved_s = time.monotonic()
    return True


def _loss_of(stage: TrainingStage, model: Nvila, heads: Heads) -> LossOf:
    tower, device = _tower(stage, model), next(model.parameters()).device

    def loss_of(batch: Batch[Tensor]) -> tuple[Tensor, Tensor]:
        # Weights that were cast for one graph must not be kept for the next.
        with torch.autocast(device.type, torch.bfloat16, enabled=stage.is_bf16, cache_enabled=device.type == "cpu"):
            return batch_loss(model, heads, tower, batch)

    return loss_of


def _use_one_thread(worker: int) -> None:
    """Let OpenCV be: there is a process for each core already."""
    cv2.setNumThreads(1)


def _tower(stage: TrainingStage, model: Nvila) -> EncodeTiles:
    """The model's tower, or where the stage does not train it a copy in bf16, the precision that it is saved in."""
    if stage.tower_lr:
        return model.vision
    frozen = copy.deepcopy(model.vision_tower["vision_model"]).bfloat16()

    def see(tile_NCHW: Tensor) -> Tensor:
        with torch.no_grad():
            return frozen(tile_NCHW.bfloat16()).float()

    return see


def _optimizer(stage: TrainingStage, model: Nvila, heads: Heads, has_graphs: bool) -> torch.optim.AdamW:
    tower = list(model.vision_tower.parameters())
    others = [*model.mm_projector.parameters(), *model.llm.parameters(), *heads.parameters()]
    groups = [{"params": tower, "peak_lr": stage.tower_lr}, {"params": others, "peak_lr": stage.lr}]
    optimizer = torch.optim.AdamW(
        groups, lr=stage.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True, capturable=has_graphs
    )
    if has_graphs:  # a graph reads the rate where it lies
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(stage.lr, device=tower[0].device)
    return optimizer


def _set_rate(optimizer: torch.optim.Optimizer, step: int, num_steps: int) -> None:
    """Linear warm-up, then a cosine down to a fiftieth."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    cosine = 0.51 + 0.49 * math.cos(math.pi * step / num_steps)
    for group in optimizer.param_groups:
        rate = group["peak_lr"] * warm * cosine
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def _resume(path: Path, stage: TrainingStage, model: Nvila, heads: Heads, optimizer: torch.optim.Optimizer) -> int:
    if not path.is_file():
        return 0
    state = load_tensors(path)
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        model.load_state_dict(state["model"])
        heads.load_state_dict(state["heads"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is the state of another model; remove it or choose another --work") from error
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate  # set anew at each step, and a graph's lies where this run put it
    _log.info("stage %s goes on from step %d", stage.name, state["step"])
    return state["step"]


def _save(path: Path, step: int, model: Nvila, heads: Heads, optimizer: torch.optim.Optimizer) -> None:
    parts = {"model": model, "heads": heads, "optimizer": optimizer}
    save_tensors(path, {"step": step, **{name: part.state_dict() for name, part in parts.items()}})


class _Figures:
    """Reports steps with the means of the last 50 of each kind.

    Losses are looked at every `READ_EVERY` steps, so that a GPU is not waited for at each.
    """

    def __init__(self, stage: TrainingStage, on_progress: OnSteps) -> None:
        self.stage, self.on_progress = stage, on_progress
        self.unread: list[tuple[int, Tensor]] = []
        self.recent: dict[str, deque[tuple[float, float]]] = {kind: deque(maxlen=50) for kind in stage.mix.kinds}

    def __call__(self, step: int, loss: Tensor, right: Tensor) -> None:
        self.unread.append((step, torch.stack([loss, right.to(loss.dtype)])))
        if step % READ_EVERY == 0:
            self.check()

    def check(self) -> None:
        """Read what was reported since the last time.

        Raises:
            ConfigError: a loss is no number.
        """
        if not self.unread:
            return
        values = torch.stack([pair for _, pair in self.unread]).tolist()
        for (step, _), (loss, right) in zip(self.unread, values, strict=True):
            if not math.isfinite(loss):
                stage = self.stage
                raise ConfigError(f"loss is {loss} at step {step} of stage {stage.name}; lower its lr {stage.lr}")
            self.recent[self.stage.mix.kinds[(step - 1) % len(self.stage.mix.kinds)]].append((loss, right))
        last = self.unread[-1][0]
        self.unread.clear()
        means = {name: np.mean(recent, axis=0) for name, recent in self.recent.items() if recent}
        figures = " ".join(f"{name} loss {loss:.3f} right {right:.3f}" for name, (loss, right) in means.items())
        num_steps = self.stage.num_steps
        self.on_progress(self.stage.name, last, num_steps, f"{last}/{num_steps} {figures}")
