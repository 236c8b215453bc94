"""The steps of a fine-tuning run.

A step's loss is the mean over the learned tokens of all its samples, whichever rank and row they are in: ranks
exchange sums, never means. So a run with more ranks, or with shorter rows, takes the same steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from nvila_ros.errors import ConfigError
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.training.conversations.bad_samples import REASONS, BadSamples, SampleError
from nvila_ros.training.conversations.encoding import encode_sample
from nvila_ros.training.conversations.files import SampleSource
from nvila_ros.training.conversations.stream import Encode
from nvila_ros.training.finetuning.learner import exchanged, in_precision, share_out
from nvila_ros.training.finetuning.settings import Settings
from nvila_ros.training.finetuning.state import LOSS_FILE, STATE_FILE, LossLog, load_state, save_state
from nvila_ros.training.finetuning.step_batches import StepBatch, StepBatches, blank_row
from nvila_ros.training.finetuning.tuning import new_optimizer, prepare
from nvila_ros.training.optimization import parameter_groups, rate_share, set_rates
from nvila_ros.training.ranks import Ranks

OnStep = Callable[[dict[str, Any]], None]
NO_HELD_OUT = "held-out samples must have at least one learned token, got none"


@dataclass(frozen=True, slots=True)
class TuningData:
    """Samples to learn from and, to judge by, others that are never learned from.

    Attributes:
        sources: at least one sample in all.
        held_out: none where nothing is judged.
    """

    sources: Sequence[SampleSource]
    held_out: Sequence[SampleSource] = ()


class TuningRun:
    """A model that is tuned step by step.

    Args:
        model: float32; it is prepared in place, on this rank's device.
        encode: encodes a sample for the model.
        data: the samples.
        settings: of the run.
        folder: keeps the state and the losses; an earlier state in it is loaded.
        ranks: this process among those of the run.
        device: this rank's.

    Attributes:
        num_steps: of the whole run.
        done: steps that were taken.
        batches: this rank's part of each step.
    """

    def __init__(
        self,
        model: Nvila,
        encode: Encode,
        data: TuningData,
        settings: Settings,
        folder: Path,
        *,
        ranks: Ranks | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.settings, self.folder, self.model = settings, folder, model
        self.ranks, self.device = ranks or Ranks(), device or torch.device("cpu")
        self._encode, self._data = encode, data
        self.batches = self._batches_of(data.sources, settings.seed)
        self._check_held_out()
        self.num_steps = settings.num_steps or settings.epochs * self.batches.steps_per_epoch
        prepare(model, settings)
        if not settings.is_sharded:  # else each layer's share alone goes there, since all of it may not fit
            model.to(self.device)
        self.learner = share_out(model, settings, self.ranks, self.device)
        groups = parameter_groups(model.named_parameters(), settings.lr_by_part, settings.weight_decay)
        self.optimizer = new_optimizer(groups, settings, self.device)
        self.bad_samples = BadSamples(is_strict=settings.is_strict)
        self.done, left_out, rates = load_state(self.state_path, model, self.optimizer)
        if self.done >= self.num_steps and rates and rates != settings.rates:
            raise ConfigError(
                f"{folder} holds a run that is finished, with rates {rates} and not {settings.rates}; choose another "
                "folder, or see its results with the same rates"
            )
        if self.ranks.is_first:  # saved are the counts of all ranks
            self.bad_samples.counts.update(left_out)
        self._saved = self.done

    @property
    def state_path(self) -> Path:
        """The file of the saved state."""
        return self.folder / STATE_FILE

    def train(self, on_step: OnStep = lambda entry: None) -> None:
        """Take the steps that are left.

        Args:
            on_step: called with each step's entry in the log, by the rank that writes it.

        Raises:
            ConfigError: a loss is no number, or a file cannot be written.
            SampleError: a sample cannot be read, and the settings are strict.
        """
        log = LossLog(self.folder / LOSS_FILE, self.done) if self.ranks.is_first else None
        steps = range(self.done, self.num_steps)
        for step, batch in zip(steps, self._read(self.batches, steps), strict=True):
            started_s = time.monotonic()
            entry = self.take_step(step, batch) | {"s": round(time.monotonic() - started_s, 4)}
            self.done = step + 1
            if log:
                log.add(entry)
                on_step(entry)
            if self.done % self.settings.save_every == 0 or self.done == self.num_steps:
                self.save()

    def save(self) -> None:
        """Save the state.

        Raises:
            ConfigError: it cannot be written; the one before is still there.
        """
        left_out, writes = self.left_out(), self.ranks.is_first
        rates = self.settings.rates
        save_state(
            self.state_path, self.done, self.model, self.optimizer, left_out=left_out, rates=rates, writes=writes
        )
        self._saved = self.done
        self.ranks.wait()

    def left_out(self) -> dict[str, int]:
        """Return how many samples all ranks left out since the beginning, by reason; every rank must ask."""
        counts = self.ranks.sum(*(self.bad_samples.counts[reason] for reason in REASONS))
        return {reason: int(count) for reason, count in zip(REASONS, counts, strict=True) if count}

    def held_out_loss(self) -> float:
        """Return the mean loss over the learned tokens of the held-out samples, without gradients.

        Raises:
            ConfigError: there is none.
        """
        batches = self._batches_of(self._data.held_out, None)
        self.model.eval()
        total, count, bad_samples = 0.0, 0.0, BadSamples(is_strict=self.settings.is_strict)
        for batch in self._read(batches, range(batches.steps_per_epoch)):
            _count(bad_samples, batch)
            with torch.no_grad():
                loss, (num_learned,) = self._forward(batch, learns=False)
            total, count = total + loss, count + num_learned
        self.model.train()
        if not count:  # what was there when the run began is gone
            raise ConfigError(NO_HELD_OUT)
        return total / count

    def take_step(self, step: int, batch: StepBatch) -> dict[str, Any]:
        """Learn from a batch; returns the entry of the log.

        Args:
            step: from 0.
            batch: this rank's part of it.

        Raises:
            ConfigError: the loss or a gradient is no number; nothing was learned from it.
            SampleError: a sample of it could not be read, and the settings are strict.
        """
        _count(self.bad_samples, batch)
        share = rate_share(step, self.num_steps, self.settings.warmup)
        set_rates(self.optimizer, share)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            # What is dropped at a step depends on nothing before it, so a run that goes on drops the same.
            torch.manual_seed(hash((self.settings.seed, step, self.ranks.rank)) & (2**63 - 1))
            total, (num_learned,) = self._forward(batch, learns=True)
        entry = {
            "step": step + 1,
            "loss": None,
            "norm": None,
            "tokens": int(num_learned),
            "lr": self.settings.lr * share,
        }
        if not num_learned:  # all samples of the step were left out
            return entry
        loss = total / num_learned
        learned = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(learned, self.settings.clip)
        norm_value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        self._check(step, loss, norm_value)
        self.optimizer.step()
        return entry | {"loss": loss, "norm": norm_value}

    def _forward(self, batch: StepBatch, *, learns: bool) -> tuple[float, tuple[float, ...]]:
        """Run a step's rows, with gradients of the mean over all ranks; returns the sum of all losses and the count."""
        (num_learned,) = self.ranks.sum(batch.num_learned)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        if num_learned:
            num_rows = self.ranks.most(len(batch.rows))
            for i in range(num_rows):
                is_mine = i < len(batch.rows)
                row = batch.rows[i] if is_mine else blank_row()
                with exchanged(self.learner, is_last=i + 1 == num_rows) if learns else nullcontext():
                    with in_precision(self.settings, self.device):
                        loss: Tensor = self.learner(row) * float(is_mine)
                    if learns:
                        # Wrappers average over the ranks; what is wanted is a sum.
                        (loss * (self.ranks.world_size / num_learned)).backward()
                total += loss.detach()
        return self.ranks.sum(float(total))[0], (num_learned,)

    def _check(self, step: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        name, value = ("loss", loss) if not math.isfinite(loss) else ("norm of the gradients", norm)
        kept = f"the state of step {self._saved} is kept" if self._saved else "nothing was saved yet"
        raise ConfigError(
            f"the {name} is {value} at step {step + 1}; {kept}: run again with a lower rate than {self.settings.lr:g}, "
            "or look for what is wrong with the samples of this step"
        )

    def _check_held_out(self) -> None:
        """Check before a tuning begins that it can be judged: one step with a learned token is enough."""
        if not self._data.held_out:
            return
        batches, bad_samples = (
            self._batches_of(self._data.held_out, None),
            BadSamples(is_strict=self.settings.is_strict),
        )
        for step in range(batches.steps_per_epoch):
            batch = batches[step]
            _count(bad_samples, batch)
            if any(self.ranks.sum(batch.num_learned)):
                return
        raise ConfigError(f"{NO_HELD_OUT}: {'; '.join(bad_samples.first.values()) or 'see the other ranks'}")

    def _batches_of(self, sources: Sequence[SampleSource], seed: int | None) -> StepBatches:
        return StepBatches(
            sources,
            self._encode,
            batch=self.settings.batch,
            row_tokens=self.settings.row_tokens,
            seed=seed,
            ranks=self.ranks,
        )

    def _read(self, batches: StepBatches, steps: range) -> DataLoader:
        return DataLoader(batches, batch_size=None, sampler=steps, num_workers=self.settings.num_workers)


def open_run(
    checkpoint: Checkpoint, data: TuningData, settings: Settings, folder: Path, ranks: Ranks, device: torch.device
) -> TuningRun:
    """Return the run that tunes a checkpoint.

    Raises:
        NvilaError: checkpoint, settings or an earlier state do not fit each other.
    """
    tokenizer = ChatTokenizer.from_folder(checkpoint.tokenizer_folder)
    encode = partial(encode_sample, checkpoint.spec, tokenizer)
    return TuningRun(load_torch_model(checkpoint), encode, data, settings, folder, ranks=ranks, device=device)


def _count(bad_samples: BadSamples, batch: StepBatch) -> None:
    for reason, text in batch.faults:
        bad_samples.add(SampleError(reason, *text.split(": ", 1)))
