"""Compute with quantized weights in torch: the reference that every quantized runtime is compared with.

In: a model's weights, quantized or not, as `quantize.py` yields them. Out: an `Engine`. Nothing is fast
here: four-bit weights are read back to float32 and multiplied as such; eight-bit maps round their input and sum whole
numbers exactly; everything else is float32.

Shapes: T tokens, K inputs, N outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from nvila_ros.errors import CheckpointError
from nvila_ros.models.activations import round_activations, token_scales
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.quantized import Int4Weight, Int8Weight, Weight, name_precision
from nvila_ros.models.shapes import HEAD
from nvila_ros.models.spec import ModelSpec
from nvila_ros.models.threads import set_threads
from nvila_ros.runtime.contract import ModelSource
from nvila_ros.runtime.torch_engine import TorchEngine

EXACT_INPUTS = 2**24 // (127 * 128)
"""Products of int8 that float32 sums exactly, in any order: every sum is a whole number below 2^24."""


class Int8Linear(nn.Module):
    """A linear map on eight-bit inputs and weights."""

    def __init__(self, weight: Int8Weight, has_bias: bool) -> None:
        super().__init__()
        num_inputs, num_outputs = weight.values_KN.shape
        exact = torch.float32 if num_inputs <= EXACT_INPUTS else torch.float64
        self.values_KN = torch.from_numpy(weight.values_KN).to(exact)
        self.scale_N = torch.from_numpy(weight.scale_N)
        self.input_scale = weight.input_scale
        self.bias = nn.Parameter(torch.empty(num_outputs), requires_grad=False) if has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., T, N) float32."""
        scale = token_scales(x) if self.input_scale is None else self.input_scale
        sums = round_activations(x, scale).to(self.values_KN.dtype) @ self.values_KN
        y = sums.float() * (scale * self.scale_N)
        return y if self.bias is None else y + self.bias


class SimulatedEngine(TorchEngine):
    """`Engine` over the reference model with quantized weights."""

    def __init__(self, spec: ModelSpec, weights: Mapping[str, Weight]) -> None:
        self.spec = spec
        self.precision = name_precision(weights)
        self.model = build_model(spec, weights)
        self.model.mm_projector.double()  # as in the reference engine


def build_model(spec: ModelSpec, weights: Mapping[str, Weight]) -> Nvila:
    """Return the reference model with these weights, ready for inference.

    Raises:
        CheckpointError: a tensor is missing, or a weight is quantized that no linear map reads.
    """
    if HEAD in weights:  # a tied head that was quantized is a tensor of its own
        spec = replace(spec, decoder=replace(spec.decoder, is_tied=False))
    with torch.device("meta"):
        model = Nvila(spec)
    state = {}
    for key, weight in weights.items():
        if isinstance(weight, Int8Weight):
            _replace_linear(model, key, weight)
        else:
            state[key] = torch.from_numpy(as_stored(weight))
    missing, unexpected = model.load_state_dict(state, assign=True, strict=False)
    if missing or unexpected:
        raise CheckpointError(f"weights must be those of {spec.name}; missing are {missing}, unknown {unexpected}")
    return model.eval().requires_grad_(False)


def as_stored(weight: np.ndarray | Int4Weight) -> np.ndarray:
    """Return a weight as in a checkpoint, float32; a linear map's with outputs first."""
    if isinstance(weight, Int4Weight):
        return np.ascontiguousarray(weight.dequantize().T)
    return weight.astype(np.float32, copy=False)


def _replace_linear(model: nn.Module, key: str, weight: Int8Weight) -> None:
    name = key.removesuffix(".weight")
    linear = model.get_submodule(name)
    if not isinstance(linear, nn.Linear) or linear.weight.shape[::-1] != weight.values_KN.shape:
        raise CheckpointError(f"{key} must be a linear map's weight with inputs first, got {weight.values_KN.shape}")
    model.set_submodule(name, Int8Linear(weight, linear.bias is not None))


def load(source: ModelSource, threads: int = 0) -> SimulatedEngine:
    """Load a build, or a checkpoint; `threads` 0 takes as many as the model keeps busy.

    Raises:
        CheckpointError: its weights are not those of its spec.
    """
    set_threads(source.spec, threads)
    return SimulatedEngine(source.spec, source.weights())
