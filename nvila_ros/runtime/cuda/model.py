"""The model on a device: the reference modules with weights that were streamed there, in the checkpoint's dtype.

Each tensor is read, converted and moved by itself, so that RAM holds one tensor beside the model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nvila_ros.errors import CheckpointError
from nvila_ros.models.checkpoint import Checkpoint
from nvila_ros.models.nvila import Nvila
from nvila_ros.models.quantized import Int4Weight, Int8Weight
from nvila_ros.models.shapes import HEAD
from nvila_ros.models.siglip import VisionAttention
from nvila_ros.runtime.contract import ModelSource
from nvila_ros.runtime.cuda.linears import DeviceInt4Linear, DeviceInt8Linear


class FusedVisionAttention(VisionAttention):
    """The reference's attention without its matrix of scores, which takes 32 MiB a tile of 1,024 patches."""

    def forward(self, x_NPE: Tensor) -> Tensor:
        """Return (N, P, E)."""
        q_NAPS, k_NAPS, v_NAPS = (self._heads(f(x_NPE)) for f in (self.q_proj, self.k_proj, self.v_proj))
        mixed_NAPS = functional.scaled_dot_product_attention(q_NAPS, k_NAPS, v_NAPS)
        return self.out_proj(mixed_NAPS.transpose(1, 2).flatten(2))


def load_model(source: ModelSource, dtype: torch.dtype, device: torch.device) -> Nvila:
    """Return the model on a device, ready for inference.

    Args:
        source: a checkpoint, or a build with its quantized weights.
        dtype: of all that is not quantized.
        device: where to.

    Raises:
        CheckpointError: a tensor is missing, or a weight is quantized that no linear map reads.
    """
    weights = source.weights(dtype=None) if isinstance(source, Checkpoint) else source.weights()
    spec = source.spec
    if HEAD in weights:  # a tied head that was quantized is a tensor of its own
        spec = replace(spec, decoder=replace(spec.decoder, is_tied=False))
    with torch.device("meta"):
        model = Nvila(spec)
        for layer in model.vision_tower["vision_model"].encoder["layers"]:
            layer.self_attn = FusedVisionAttention(spec.vision)
    state = {}
    for key, weight in weights.items():
        if isinstance(weight, np.ndarray):
            state[key] = as_tensor(weight).to(device, dtype)
        else:
            _replace_linear(model, key, weight, dtype, device)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    if missing or unexpected:
        raise CheckpointError(f"weights must be those of {spec.name}; missing are {missing}, unknown {unexpected}")
    return model.eval().requires_grad_(False)


def as_tensor(array: np.ndarray) -> Tensor:
    """Return a tensor over an array, also over one of bfloat16, which torch does not take from numpy."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _replace_linear(
    model: nn.Module, key: str, weight: Int4Weight | Int8Weight, dtype: torch.dtype, device: torch.device
) -> None:
    """Put a quantized map in the place of a linear one; its bias, which may come later, is assigned with the others."""
    name = key.removesuffix(".weight")
    linear = model.get_submodule(name)
    if not isinstance(linear, nn.Linear) or linear.weight.shape[::-1] != weight.values_KN.shape:
        raise CheckpointError(f"{key} must be a linear map's weight with inputs first, got {weight.values_KN.shape}")
    if isinstance(weight, Int4Weight):
        model.set_submodule(name, DeviceInt4Linear(weight, linear.bias, dtype, device))
    else:
        model.set_submodule(name, DeviceInt8Linear(weight, linear.bias, device))
