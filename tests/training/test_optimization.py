"""Groups and rates by which parameters are stepped."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nvila_ros.training.optimization import parameter_groups, rate_share, set_rates


@given(num_steps=st.integers(1, 2000), warmup=st.floats(0, 0.99))
def test_rate_rises_then_falls_and_is_never_zero(num_steps: int, warmup: float) -> None:
    shares = [rate_share(step, num_steps, warmup) for step in range(num_steps)]
    num_warm = math.ceil(warmup * num_steps)

    assert all(0 < share <= 1 for share in shares)
    assert shares[:num_warm] == sorted(shares[:num_warm])
    assert shares[num_warm:] == sorted(shares[num_warm:], reverse=True)
    assert num_warm == num_steps or shares[num_warm] == 1


def test_half_way_down_the_cosine_the_rate_is_half() -> None:
    assert rate_share(1030 // 2 + 15, 1030, 30 / 1030) == pytest.approx(0.5, abs=1e-3)


def test_groups_hold_each_parameter_that_learns_once() -> None:
    model = nn.ModuleDict({"vision_tower": nn.Linear(2, 3), "llm": nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))})
    model["llm"][0].bias.requires_grad_(False)

    groups = parameter_groups(model.named_parameters(), {"vision_tower": 0.1, "llm": 1.0}, weight_decay=0.5)
    optimizer = torch.optim.AdamW(groups)
    set_rates(optimizer, 0.25)

    found = {name: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for name in group["names"]}
    assert found == {
        "vision_tower.weight": (0.025, 0.5),
        "vision_tower.bias": (0.025, 0.0),
        "llm.0.weight": (0.25, 0.5),
        "llm.1.weight": (0.25, 0.0),
        "llm.1.bias": (0.25, 0.0),
    }
    assert sum(len(group["names"]) for group in optimizer.param_groups) == len(found)
