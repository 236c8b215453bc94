"""Models over drawn sets: the log probability of answers, training, and how many answers are right.

Rows are padded at their ends, where a causal decoder sees nothing, so a row is the sample as every other way reads it.
Heads and losses are of learned tokens alone.

Shapes: N samples, D decoder width, T learned tokens, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.pruning.drawn import DrawnSet
from nvila_ros.models.nvila import Nvila
from nvila_ros.prompt.chat import PLACEHOLDER
from nvila_ros.training.token_labels import IGNORE

AT_ONCE = 256
"""Samples that are read together where nothing is learned."""
REPORT_EVERY = 200  # steps; reading a loss waits for the device


@dataclass(frozen=True, slots=True)
class LearnedTokens:
    """The learned tokens of some samples, and what a model predicts at each.

    Attributes:
        hidden: that predicts the token, (T, D).
        logits: (T, V) float32.
        ids: the token that is right, (T,) int64.
        owners: which of the samples each is of, (T,) int64.
    """

    hidden: Tensor
    logits: Tensor
    ids: Tensor
    owners: np.ndarray


def learned_tokens(model: Nvila, drawn: DrawnSet, indices: np.ndarray) -> LearnedTokens:
    """Return the learned tokens of the samples with these numbers, read by a model from its projector on."""
    device = next(model.parameters()).device
    length = int(drawn.lengths[indices].max())
    labels = drawn.labels[indices, :length]
    owners, offsets = np.nonzero(labels != IGNORE)  # on the host: the device would be waited for
    with torch.device(device):
        input_ids, places, ids = (
            torch.from_numpy(array.astype(np.int64)).to(device)
            for array in (drawn.ids[indices, :length], owners * length + offsets, labels[owners, offsets])
        )
        features = torch.from_numpy(drawn.features[indices]).to(device).float()
        embeds = model.llm.embed(input_ids.clamp(min=0))
        embeds = embeds.masked_scatter((input_ids == PLACEHOLDER)[..., None], model.project(features))
        hidden = model.llm(embeds).flatten(0, 1)[places]
        return LearnedTokens(hidden, model.llm.head(hidden).float(), ids, owners)


@torch.inference_mode()
def log_probs(model: Nvila, drawn: DrawnSet) -> np.ndarray:
    """Return the log probability of each sample's answers, (N,) float64, as `Scorer.log_probs`."""
    found = np.zeros(len(drawn))
    for indices in _in_order(drawn):
        learned = learned_tokens(model, drawn, indices)
        logs = -functional.cross_entropy(learned.logits, learned.ids, reduction="none").double().cpu().numpy()
        found[indices] = np.bincount(learned.owners, logs, minlength=len(indices))
    return found


@torch.inference_mode()
def first_hidden(model: Nvila, drawn: DrawnSet) -> np.ndarray:
    """Return what a model holds at the beginning of each sample's first answer, (N, D) float32 of length 1."""
    found = np.zeros((len(drawn), model.spec.decoder.width), np.float32)
    for indices in _in_order(drawn):
        learned = learned_tokens(model, drawn, indices)
        firsts = torch.from_numpy(np.searchsorted(learned.owners, np.arange(len(indices))))
        found[indices] = functional.normalize(learned.hidden.cpu()[firsts]).numpy()
    return found


@torch.inference_mode()
def is_right(model: Nvila, drawn: DrawnSet) -> np.ndarray:
    """Return which samples a model answers right, (N,) bool.

    It would say exactly the true answer, the likeliest token first, where each of its tokens and the stop behind it is
    the likeliest after those before: so one call is enough, and nothing is decoded token by token.
    """
    found = np.zeros(len(drawn), bool)
    for indices in _in_order(drawn):
        learned = learned_tokens(model, drawn, indices)
        is_missed = (learned.logits.argmax(-1) != learned.ids).cpu().numpy()
        found[indices] = np.bincount(learned.owners, is_missed, minlength=len(indices)) == 0
    return found


def _in_order(drawn: DrawnSet) -> Iterator[np.ndarray]:
    """Yield the numbers of all samples, those of one length together."""
    order = np.argsort(drawn.lengths, kind="stable")
    yield from (order[first : first + AT_ONCE] for first in range(0, len(order), AT_ONCE))


def learn(
    model: Nvila, drawn: DrawnSet, indices: np.ndarray, *, epochs: int, batch: int, peak_lr: float, name: str
) -> None:
    """Train projector and decoder on some samples, each time all of them in another order.

    Args:
        model: is changed, on its device.
        drawn: the set.
        indices: numbers of the samples.
        epochs: how often each is learned from.
        batch: samples of a step.
        peak_lr: of the learning rate.
        name: of the run, which says how far it is.
    """
    started_s = time.monotonic()
    model.train().requires_grad_()
    model.vision_tower.requires_grad_(False)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    is_cuda = parameters[0].is_cuda
    optimizer = torch.optim.AdamW(parameters, lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01, fused=is_cuda)
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(indices) for _ in range(epochs)])
    num_steps = -(-len(order) // batch)
    losses: list[Tensor] = []
    for step in range(num_steps):
        set_rate(optimizer, peak_lr, step / num_steps)
        learned = learned_tokens(model, drawn, order[step * batch : (step + 1) * batch])
        loss = functional.cross_entropy(learned.logits, learned.ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.detach())
        if (step + 1) % REPORT_EVERY == 0 or step + 1 == num_steps:
            recent, spent_s = torch.stack(losses).mean().item(), time.monotonic() - started_s
            print(f"{name}: step {step + 1} of {num_steps}, loss {recent:.3f}, {spent_s:.0f} s", flush=True)
            losses.clear()
    model.eval().requires_grad_(False)


def set_rate(optimizer: torch.optim.Optimizer, peak_lr: float, done: float) -> None:
    """Warm up over a twentieth, then a cosine down to a fiftieth; `done` is the share of the steps."""
    rate = peak_lr * min(1.0, (done + 0.001) / 0.05) * (0.51 + 0.49 * math.cos(math.pi * done))
    for group in optimizer.param_groups:
        group["lr"] = rate
