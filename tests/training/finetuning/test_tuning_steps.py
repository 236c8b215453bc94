"""Steps that rows, ranks and stops do not change."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nvila_ros.errors import CheckpointError, ConfigError
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.runtime.torch_engine import load_torch_model
from nvila_ros.training.conversations.forward import learned_log_probs
from nvila_ros.training.conversations.packing import PackedRow, join
from nvila_ros.training.conversations.samples import Sample, SampleTurn
from nvila_ros.training.finetuning.learner import Learner
from nvila_ros.training.finetuning.settings import Settings
from nvila_ros.training.finetuning.state import read_losses
from nvila_ros.training.finetuning.step_batches import blank_row
from nvila_ros.training.finetuning.tuning import prepare
from nvila_ros.training.token_labels import IGNORE
from tests.training.finetuning.small_runs import FLAT, WORLD, encode, learned_names, new_run

pytestmark = pytest.mark.slow  # trains


def losses_of(folder: Path) -> list[float]:
    return [entry["loss"] for entry in read_losses(folder / "losses.jsonl")]


def test_loss_is_the_mean_over_all_told_tokens_however_samples_are_packed(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    encoded = [encode(checkpoint, WORLD.read(i)) for i in range(len(WORLD))]
    model = load_torch_model(checkpoint)
    wanted = -torch.cat([learned_log_probs(model, join([sample])) for sample in encoded]).mean().item()

    runs = [new_run(checkpoint, tmp_path / str(n), batch=12, num_steps=2, row_tokens=n) for n in (1, 300, 10000)]
    for run in runs:
        run.train()

    assert losses_of(runs[0].folder)[0] == pytest.approx(wanted, abs=1e-6)
    for run in runs[1:]:
        assert losses_of(run.folder) == pytest.approx(losses_of(runs[0].folder), abs=1e-5)


def test_checkpointing_changes_no_loss(checkpoint: Checkpoint, tmp_path: Path) -> None:
    for saves_memory in (False, True):
        new_run(
            checkpoint, tmp_path / str(saves_memory), tower="full", llm="full", num_steps=3, saves_memory=saves_memory
        ).train()

    assert losses_of(tmp_path / "True") == losses_of(tmp_path / "False")


@pytest.mark.parametrize(("precision", "apart"), [("bf16", 0.005), ("fp8", 0.015)])
def test_lower_precision_learns_alike(checkpoint: Checkpoint, tmp_path: Path, precision: str, apart: float) -> None:
    for each in ("fp32", precision):
        new_run(checkpoint, tmp_path / each, tower="full", llm="full", num_steps=6, lr=1e-4, precision=each).train()

    found, wanted = losses_of(tmp_path / precision), losses_of(tmp_path / "fp32")
    assert found != wanted
    assert found[0] == pytest.approx(wanted[0], rel=apart)  # nothing was learned yet
    assert np.mean(found) == pytest.approx(np.mean(wanted), rel=0.03)


def test_row_without_media_leaves_no_parameter_out(checkpoint: Checkpoint) -> None:
    text = encode(checkpoint, Sample("text", (SampleTurn((), "What?", "That."),), "text"))
    model = load_torch_model(checkpoint)
    prepare(model, Settings(**FLAT, tower="full", llm="full"))

    loss = Learner(model)(join([text]))
    loss.backward()

    assert loss.item() == pytest.approx(-learned_log_probs(model, join([text])).sum().item(), abs=1e-6)
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.mm_projector.layers[-1].weight.grad.abs().max() == 0


def test_blank_row_tells_one_token_and_shows_nothing(checkpoint: Checkpoint) -> None:
    row = blank_row()

    assert isinstance(row, PackedRow)
    assert int((row.labels_L != IGNORE).sum()) == 1
    assert math.isfinite(Learner(load_torch_model(checkpoint))(row).item())


@pytest.mark.parametrize(
    "settings",
    [
        {"tower": "lora", "llm": "lora", "lora_dropout": 0.2},
        {"tower": "full", "llm": "full"},
        {"tower": "layernorm", "llm": "qlora", "precision": "bf16", "saves_memory": True},
        {"tower": "layernorm", "llm": "full", "precision": "fp8"},
    ],
)
def test_run_that_goes_on_is_the_run_that_never_stopped(
    checkpoint: Checkpoint, tmp_path: Path, settings: dict[str, Any]
) -> None:
    whole = new_run(checkpoint, tmp_path / "whole", num_steps=6, save_every=4, **settings)
    whole.train()

    def stop_behind_five(entry: dict[str, Any]) -> None:
        if entry["step"] == 5:
            raise KeyboardInterrupt  # one step past what was saved

    with pytest.raises(KeyboardInterrupt):
        new_run(checkpoint, tmp_path / "cut", num_steps=6, save_every=4, **settings).train(stop_behind_five)
    second = new_run(checkpoint, tmp_path / "cut", num_steps=6, save_every=4, **settings)
    assert second.done == 4
    second.train()

    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")
    for name in learned_names(whole.model):
        assert torch.equal(second.model.get_parameter(name), whole.model.get_parameter(name)), name


def test_loss_that_is_no_number_is_refused_and_the_last_state_kept(checkpoint: Checkpoint, tmp_path: Path) -> None:
    new_run(checkpoint, tmp_path, num_steps=4, save_every=2, tower="full", llm="full").train(
        lambda entry: None
    )  # the state of step 4
    (tmp_path / "losses.jsonl").unlink()
    kept = (tmp_path / "state.pt").read_bytes()
    run = new_run(checkpoint, tmp_path, num_steps=8, save_every=2, tower="full", llm="full")
    run.model.mm_projector.layers[-1].weight.data[0, 0] = math.nan

    with pytest.raises(
        ConfigError, match=r"the loss is nan at step 5; the state of step 4 is kept: run again with a lower"
    ):
        run.train()

    assert (tmp_path / "state.pt").read_bytes() == kept


def test_damaged_or_foreign_state_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    new_run(checkpoint, tmp_path, num_steps=1).train()

    with pytest.raises(CheckpointError, match="of another run"):
        new_run(checkpoint, tmp_path, tower="full")
    (tmp_path / "state.pt").write_bytes((tmp_path / "state.pt").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"state\.pt is damaged"):
        new_run(checkpoint, tmp_path)


def test_sharding_without_torchrun_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start it with torchrun"):
        new_run(checkpoint, tmp_path, is_sharded=True)
