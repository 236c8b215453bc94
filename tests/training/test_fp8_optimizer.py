"""AdamW in FP8: it goes where torch's own goes, goes on from where it stopped, and holds a quarter of the bytes."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from nvila_ros.errors import ConfigError
from nvila_ros.training.fp8 import Fp8AdamW, optimizer
from nvila_ros.training.fp8.expansion import STATE_GROUP, Expanded, contract, expand

pytestmark = pytest.mark.slow  # trains

SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def regression(seed: int, optimizer_class: type, num_steps: int, **more: Any) -> tuple[nn.Module, list[float], Any]:
    """A small network that learns another one; odd sizes, so that groups are cut and filled up."""
    torch.manual_seed(seed)
    teacher = nn.Sequential(nn.Linear(20, 37), nn.Tanh(), nn.Linear(37, 5))
    student = nn.Sequential(nn.Linear(20, 37), nn.Tanh(), nn.Linear(37, 5))
    steps = optimizer_class(student.parameters(), **{**SETTINGS, **more})
    losses = []
    for _ in range(num_steps):
        x = torch.randn(64, 20)
        loss = nn.functional.mse_loss(student(x), teacher(x).detach())
        steps.zero_grad()
        loss.backward()
        steps.step()
        losses.append(loss.item())
    return student, losses, steps


def test_first_step_is_that_of_adamw() -> None:
    """Moments are rounded behind a step, so the first one has nothing to lose."""
    got, want = (regression(0, each, 1)[0] for each in (Fp8AdamW, torch.optim.AdamW))

    for mine, other in zip(got.parameters(), want.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-5, atol=1e-7)


def test_a_step_on_read_moments_is_the_formula() -> None:
    parameter = nn.Parameter(torch.linspace(-1, 1, 200))
    steps = Fp8AdamW([parameter], **SETTINGS)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        before, state = parameter.detach().double().clone(), copy.deepcopy(steps.state[parameter])
        parameter.grad = torch.randn(200, generator=generator)
        steps.step()

        t, grad = state.get("step", 0) + 1, parameter.grad.double()
        m, v = (_moment(state, name)[:200].double() if state else 0 * grad for name in optimizer.MOMENTS)
        m, v = 0.9 * m + 0.1 * grad, 0.99 * v + 0.01 * grad**2
        update = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
        want = before * (1 - 1e-2 * 0.1) - 1e-2 * update
        assert torch.allclose(parameter.detach().double(), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_learns_what_adamw_learns(seed: int) -> None:
    got, want = (regression(seed, each, 400)[1] for each in (Fp8AdamW, torch.optim.AdamW))

    assert want[-1] < 0.1 * want[0]
    assert sum(got[-50:]) <= 1.15 * sum(want[-50:])


def test_many_parts_step_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = regression(0, Fp8AdamW, 5)[0]
    monkeypatch.setattr(optimizer, "GROUPS_AT_ONCE", 2)

    in_parts = regression(0, Fp8AdamW, 5)[0]

    for mine, other in zip(in_parts.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_goes_on_from_a_saved_state_bit_by_bit(dtype: torch.dtype) -> None:
    model = nn.Linear(30, 11).to(dtype)
    steps = Fp8AdamW(model.parameters(), **SETTINGS)
    generator = torch.Generator().manual_seed(0)
    grads = [[torch.randn(p.shape, generator=generator).to(dtype) for p in model.parameters()] for _ in range(6)]
    for each in grads[:3]:
        _step(model, steps, each)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "steps": steps.state_dict()}, file)
    for each in grads[3:]:
        _step(model, steps, each)

    again = nn.Linear(30, 11).to(dtype)
    resumed = Fp8AdamW(again.parameters(), lr=1.0)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["steps"])
    for each in grads[3:]:
        _step(again, resumed, each)

    assert resumed.param_groups[0]["lr"] == SETTINGS["lr"]
    for mine, other in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, other)
        for name, value in steps.state[other].items():
            if name == "step":
                assert resumed.state[mine][name] == value
            else:
                assert resumed.state[mine][name].dtype == value.dtype
                assert torch.equal(resumed.state[mine][name].view(torch.uint8), value.view(torch.uint8))


def test_loaded_state_is_not_shared_with_its_source() -> None:
    parameter = nn.Parameter(torch.ones(128))
    steps = Fp8AdamW([parameter], **SETTINGS)
    _grad_step(steps, parameter, torch.ones(128))
    other = nn.Parameter(torch.ones(128))
    resumed = Fp8AdamW([other], **SETTINGS)
    resumed.load_state_dict(steps.state_dict())

    _grad_step(resumed, other, torch.full((128,), 9.0))

    assert (resumed.state[other]["step"], steps.state[parameter]["step"]) == (2, 1)
    assert not torch.equal(resumed.state[other]["first_top"], steps.state[parameter]["first_top"])


def test_weight_whose_gradient_all_but_vanishes_makes_no_jump() -> None:
    """Beside a gradient of 1, one of 1e-9 has a second moment that no code of E4M3 reaches: 1e-18."""
    parameter = nn.Parameter(torch.zeros(128))
    steps = Fp8AdamW([parameter], **{**SETTINGS, "weight_decay": 0.0})
    grad = torch.ones(128)
    grad[1:] = 1e-9
    for _ in range(100):
        before = parameter.detach().clone()
        _grad_step(steps, parameter, grad)
        assert ((parameter.detach() - before).abs() <= 1.01 * SETTINGS["lr"]).all()

    assert (_moment(steps.state[parameter], "second") > 0).all()


def test_states_take_a_quarter_of_the_bytes() -> None:
    parameters = [nn.Parameter(torch.randn(256, 512)), nn.Parameter(torch.randn(384))]
    sizes = {}
    for each in (Fp8AdamW, torch.optim.AdamW):
        steps = each(parameters, lr=1e-3)
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        steps.step()
        tensors = [v for state in steps.state.values() for v in state.values() if isinstance(v, torch.Tensor)]
        sizes[each] = sum(v.untyped_storage().nbytes() for v in tensors if v.dim())

    count = sum(parameter.numel() for parameter in parameters)
    assert sizes[torch.optim.AdamW] == 8 * count
    assert sizes[Fp8AdamW] == 2 * count + 2 * 5 * count // 128


def test_closure_runs_with_gradients_and_its_loss_is_returned() -> None:
    parameter = nn.Parameter(torch.ones(16))
    steps = Fp8AdamW([parameter], **SETTINGS)

    def closure() -> torch.Tensor:
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert steps.step(closure).item() == 16
    assert (parameter < 1).all()


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"eps": 0.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -0.1}])
def test_numbers_outside_their_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="AdamW needs lr >= 0"):
        Fp8AdamW([nn.Parameter(torch.ones(4))], **bad)


def test_shards_of_fsdp_are_stepped_on_as_what_they_are(tmp_path: Path) -> None:
    """One process here: its shard is the whole."""
    plain, sharded = (nn.Linear(40, 24, bias=False) for _ in range(2))
    sharded.load_state_dict(plain.state_dict())
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
        x = torch.randn(8, 40)
        for module in (plain, sharded):
            steps = Fp8AdamW(module.parameters(), **SETTINGS)
            for _ in range(3):
                steps.zero_grad()
                module(x).square().sum().backward()
                steps.step()
        assert torch.equal(sharded.weight.to_local(), plain.weight)
    finally:
        torch.distributed.destroy_process_group()


def test_parameter_with_strides_of_its_own_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(4, 6).t())
    parameter.grad = torch.ones(6, 4)

    with pytest.raises(ConfigError, match="needs contiguous parameters"):
        Fp8AdamW([parameter]).step()


def _moment(state: dict[str, Any], name: str) -> torch.Tensor:
    return contract(Expanded(*(state[f"{name}_{part}"] for part in ("codes", "top", "k")))).flatten()


def _step(model: nn.Module, steps: torch.optim.Optimizer, grads: list[torch.Tensor]) -> None:
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = grad.clone()
    steps.step()


def _grad_step(steps: torch.optim.Optimizer, parameter: nn.Parameter, grad: torch.Tensor) -> None:
    parameter.grad = grad
    steps.step()
    assert math.isfinite(parameter.sum().item())


def test_second_moments_follow_gradients_that_fade_by_chance_and_not_by_the_nearest_code() -> None:
    beta, chance = 0.99, torch.Generator().manual_seed(0)
    deviation = torch.logspace(math.log10(1 / 30), 0, STATE_GROUP)
    exact, by_chance, nearest = (torch.zeros(4, STATE_GROUP) for _ in range(3))
    for step in range(1500):
        if step == 500:
            deviation[::2] /= 10
        square = (torch.randn(exact.shape, generator=chance) * deviation) ** 2
        exact = beta * exact + (1 - beta) * square
        by_chance = beta * contract(expand(by_chance, chance)) + (1 - beta) * square
        nearest = beta * contract(expand(nearest)) + (1 - beta) * square

    ratio, stuck = (((moment / exact)[:, ::2]).log().mean().exp().item() for moment in (by_chance, nearest))
    assert ratio == pytest.approx(1.0, abs=0.1)
    assert stuck > 2
