"""From a model to one that trains in FP8, in place: parameters, their names and the model's code stay what they are."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from torch import nn

from nvila_ros.errors import ConfigError
from nvila_ros.models.decoder import GatedMlp
from nvila_ros.training.fp8.formats import GROUP
from nvila_ros.training.fp8.linear import MULTIPLE, Fp8Linear, SharedInput
from nvila_ros.training.fp8.nonlinear import Fp8Mlp, Fp8RmsNorm

_log = logging.getLogger(__name__)

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Maps of one module that read one input."""


def convert_linears(module: nn.Module, *, keep_nonlinear: bool = True) -> int:
    """Let the linear maps of a module multiply in FP8 and keep in FP8 what their backward passes need.

    Maps whose sides are no multiples of 16 stay as they are, such as adapters of a low rank, and are named in the log;
    so do subclasses of `nn.Linear`, which have a forward pass of their own. Tables that are read by
    `functional.linear`, such as the decoder's head, are no modules and stay too.

    Args:
        module: trained from here on; NVILA converts its decoder only, the tower and the projector stay in bfloat16.
        keep_nonlinear: keep the inputs of RMSNorms and of the decoder's gates in FP8 as well.

    Returns:
        How many maps were converted.

    Raises:
        ConfigError: none was.
    """
    linears = {name: linear for name, linear in module.named_modules() if type(linear) is nn.Linear}
    fitting = {name: linear for name, linear in linears.items() if _fits(linear)}
    if not fitting:
        raise ConfigError(
            f"FP8 needs linear maps whose sides are multiples of {MULTIPLE}, but the module has none among its "
            f"{len(linears)}; train it in bf16"
        )
    for linear in fitting.values():
        linear.__class__ = Fp8Linear  # keeps parameters, hooks and whoever refers to the map
    for siblings in _siblings(module):
        shared = SharedInput(len(siblings))
        for linear in siblings:
            linear.shared_input = shared
    if keep_nonlinear:
        _convert_nonlinear(module)
    if len(fitting) < len(linears):
        _log.info("kept in bf16, since a side is no multiple of %d: %s", MULTIPLE, ", ".join(linears.keys() - fitting))
    return len(fitting)


def _fits(linear: nn.Linear) -> bool:
    return linear.in_features % MULTIPLE == 0 and linear.out_features % MULTIPLE == 0


def _siblings(module: nn.Module) -> Iterator[list[Fp8Linear]]:
    for parent in module.modules():
        children = dict(parent.named_children())
        for names in SIBLINGS:
            maps = [child for name in names if isinstance(child := children.get(name), Fp8Linear)]
            if len(maps) == len(names):
                yield maps


def _convert_nonlinear(module: nn.Module) -> None:
    for each in module.modules():
        if type(each) is nn.RMSNorm and each.elementwise_affine and _is_grouped(each):
            each.__class__ = Fp8RmsNorm
        elif type(each) is GatedMlp and each.gate_proj.out_features % GROUP == 0:
            each.__class__ = Fp8Mlp


def _is_grouped(norm: nn.RMSNorm) -> bool:
    return len(norm.normalized_shape) == 1 and norm.normalized_shape[0] % GROUP == 0
