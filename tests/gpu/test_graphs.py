"""Training on a GPU: steps replayed as CUDA graphs are the steps taken kernel by kernel."""

from pathlib import Path

import pytest
import torch

from nvila_ros.paths import share_path
from nvila_ros.prompt.tokenizer import ChatTokenizer
from nvila_ros.training import tiny
from nvila_ros.training.batches import Batches
from nvila_ros.training.losses import Heads
from nvila_ros.training.mix import Mix
from nvila_ros.training.recipes import TrainingStage
from nvila_ros.training.steps import Stepper
from nvila_ros.training.train_tiny import _loss_of, _optimizer, _set_rate

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
NUM_STEPS = 24


@pytest.mark.parametrize("tower_lr", [0.0, 1e-3])
def test_replayed_steps_are_those_of_single_kernels(tower_lr: float) -> None:
    eager, replayed = (_losses(tower_lr, has_graphs) for has_graphs in (False, True))

    assert torch.allclose(eager, replayed, rtol=2e-2, atol=2e-2), (eager - replayed).abs().max()
    assert eager[-4:].mean() < eager[:4].mean()


def _losses(tower_lr: float, has_graphs: bool) -> torch.Tensor:
    mix = Mix(kinds=("images", "clips", "events", "dense"), seed_base=0, num_samples=8, num_clips=4)
    stage = TrainingStage("all", mix, NUM_STEPS, 1e-3, tower_lr, is_bf16=False)
    model = tiny.new_model(0).cuda().train().requires_grad_()
    torch.manual_seed(0)
    heads = Heads(tiny.SPEC).cuda()
    optimizer = _optimizer(stage, model, heads, has_graphs)
    step_on = Stepper(_loss_of(stage, model, heads), list(model.parameters()), optimizer, has_graphs=has_graphs)
    batches = Batches(mix, ChatTokenizer.from_folder(Path(share_path("checkpoints", "nvila-tiny", "llm"))), tiny.SPEC)
    losses = []
    for step in range(NUM_STEPS):
        _set_rate(optimizer, step, NUM_STEPS)
        losses.append(step_on(batches[step % 8])[0])
    assert not has_graphs or any(captured is not None for captured in step_on._captured.values())
    return torch.stack(losses).cpu()
