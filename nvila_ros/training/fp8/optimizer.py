"""AdamW whose two moments are kept in FP8: 2.08 bytes for each parameter instead of 8.

A step is that of `torch.optim.AdamW` on moments read from their codes, in float32; the moments of the step itself are
used before they are rounded. The second moment is rounded by chance and never to 0; the chance of a step is a function
of its number and of the parameter's, so that a run that was resumed and ranks that compute the same stay the same.

Shapes: G groups of 128 neighbours in a flattened parameter, the last one filled up with zeros; N 128.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nvila_ros.errors import ConfigError
from nvila_ros.training.fp8.expansion import STATE_GROUP, Expanded, contract, expand
from nvila_ros.training.fp8.formats import E4M3

GROUPS_AT_ONCE = 2**17
"""Groups whose moments are in float32 at a time, 64 MiB for each of the two."""
MOST_PARAMETERS = 2**20
"""Parameters of an optimizer whose chances never coincide."""
MOMENTS = ("first", "second")


class Fp8AdamW(torch.optim.Optimizer):
    """AdamW with both moments in E4M3.

    Args:
        params: parameters or groups of them; float32 masters as a rule, since a step is often smaller than the
            precision of bfloat16.
        lr: learning rate.
        betas: of the two moments.
        eps: added to the root of the second moment.
        weight_decay: of each step, times the learning rate, as AdamW has it.

    Raises:
        ConfigError: a number outside its range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        if lr < 0 or eps <= 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(
                "AdamW needs lr >= 0, eps > 0, weight_decay >= 0 and 0 <= beta < 1, "
                f"got lr {lr}, eps {eps}, weight_decay {weight_decay}, betas {betas}"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do a step on every parameter that has a gradient; returns what the closure does, run with gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, number, group)
                number += 1
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state: every code and scale is what it was, on the device of its parameter."""
        super().load_state_dict(state_dict)
        # The base class casts states to the type of their parameter, which codes do not survive.
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            saved = state_dict["state"].get(number)
            if saved is not None:
                self.state[parameter] = {
                    name: value.detach().clone().to(parameter.device) if isinstance(value, Tensor) else value
                    for name, value in saved.items()
                }

    def _step_one(self, parameter: Tensor, number: int, group: dict[str, Any]) -> None:
        state, weights = self.state[parameter], _local(parameter.detach())
        if not state:
            _begin(state, weights)
        state["step"] += 1
        chance = torch.Generator(weights.device).manual_seed(state["step"] * MOST_PARAMETERS + number)
        flat, grad = weights.view(-1), _local(parameter.grad).reshape(-1)
        span = GROUPS_AT_ONCE * STATE_GROUP
        for start in range(0, len(flat), span):
            groups = slice(start // STATE_GROUP, (start + span) // STATE_GROUP)
            first, second = (_read(state, name, groups) for name in MOMENTS)
            update_GN = _advance(first, second, _grouped(grad[start : start + span].float()), state["step"], group)
            part = flat[start : start + span]
            new = part.float() * (1 - group["lr"] * group["weight_decay"])
            part.copy_(new.sub_(update_GN.view(-1)[: len(part)], alpha=group["lr"]))
            _write(state, "first", groups, expand(first))
            _write(state, "second", groups, expand(second, chance))


def _begin(state: dict[str, Any], parameter: Tensor) -> None:
    if not parameter.is_contiguous():
        raise ConfigError(f"Fp8AdamW needs contiguous parameters, got strides {parameter.stride()}")
    num_groups, device = math.ceil(parameter.numel() / STATE_GROUP), parameter.device
    state["step"] = 0
    for name in MOMENTS:
        state[f"{name}_codes"] = torch.zeros(num_groups, STATE_GROUP, dtype=E4M3, device=device)
        state[f"{name}_top"] = torch.zeros(num_groups, device=device)
        state[f"{name}_k"] = torch.full((num_groups,), 16, dtype=torch.uint8, device=device)


def _local(tensor: Tensor) -> Tensor:
    """Return a rank's shard of a tensor that FSDP spreads, and any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _advance(first_GN: Tensor, second_GN: Tensor, grad_GN: Tensor, step: int, group: dict[str, Any]) -> Tensor:
    """Bring the moments to this step, in place, and return what is to be taken from the weights at a rate of 1."""
    beta1, beta2 = group["betas"]
    first_GN.lerp_(grad_GN, 1 - beta1)
    second_GN.mul_(beta2).addcmul_(grad_GN, grad_GN, value=1 - beta2)
    root_GN = second_GN.sqrt().div_(math.sqrt(1 - beta2**step)).add_(group["eps"])
    return (first_GN / root_GN).div_(1 - beta1**step)


def _grouped(flat: Tensor) -> Tensor:
    return functional.pad(flat, (0, -len(flat) % STATE_GROUP)).view(-1, STATE_GROUP)


def _read(state: dict[str, Any], name: str, groups: slice) -> Tensor:
    return contract(Expanded(*(state[f"{name}_{part}"][groups] for part in ("codes", "top", "k"))))


def _write(state: dict[str, Any], name: str, groups: slice, moment: Expanded) -> None:
    for part, value in zip(("codes", "top", "k"), moment, strict=True):
        state[f"{name}_{part}"][groups] = value
