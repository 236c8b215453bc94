"""How parameters are stepped: groups with learning rates of their own, warm-up and cosine, AdamW.

The tower is tuned far more slowly than the language model, and norms and biases are not decayed.

Source: NVILA (arXiv 2412.04468), section on fine-tuning: the tower's rate 5 to 50 times below the language model's;
NVLabs/VILA's scripts: cosine, warm-up over 0.03 of the steps, no weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

TOWER, PROJECTOR, LLM = PARTS = ("vision_tower", "mm_projector", "llm")
"""Parts of the model by the first word of a parameter's name."""


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], lr_by_part: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Return AdamW's groups over the parameters that learn: by part, and in each those that decay apart.

    Args:
        named: parameters with names that begin with one of `PARTS`.
        lr_by_part: the peak rate of each part.
        weight_decay: of what is not a norm or a bias.

    Returns:
        Groups with `params`, `names`, `peak_lr` and `weight_decay`; empty ones are left out.
    """
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        part, decays = name.partition(".")[0], parameter.ndim > 1
        found = groups.setdefault(
            (part, decays),
            {
                "params": [],
                "names": [],
                "lr": 0.0,
                "peak_lr": lr_by_part[part],
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        found["params"].append(parameter)
        found["names"].append(name)
    return list(groups.values())


def rate_share(step: int, num_steps: int, warmup: float) -> float:
    """Return the share of the peak rate at a step, in (0, 1]: a line up, then a cosine that ends just above 0.

    Args:
        step: from 0.
        num_steps: of the whole run.
        warmup: share of the steps that the line takes, in [0, 1).
    """
    num_warm = math.ceil(warmup * num_steps)
    if step < num_warm:
        return (step + 1) / (num_warm + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - num_warm) / (num_steps - num_warm))


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set each group's rate to a share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
