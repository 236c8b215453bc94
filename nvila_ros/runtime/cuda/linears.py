"""Linear maps with quantized weights on a device.

Four bits: a kernel of our own for few tokens, which reads the four bits alone; for many, where a product is bound by
arithmetic, the weight is read back to the model's dtype and multiplied as such. Eight bits: inputs are rounded, and
products of int8 summed exactly in int32.

Shapes: T tokens, K inputs, N outputs, G groups of inputs.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvila_ros.models.activations import round_activations, token_scales
from nvila_ros.models.quantized import INT4_RANGE, Int4Weight, Int8Weight

FEW_TOKENS = 16
"""Up to which the kernel of four bits is used: those of an answer's step, or of a few branches."""
LEAST_GROUP = 32  # that the kernel takes; a power of two
LEAST_ROWS = 32  # of a product of int8 on CUDA, which takes more than 16


class DeviceInt4Linear(nn.Module):
    """W4A16: y = x W + b with four-bit W.

    Args:
        weight: of the map.
        bias: (N,) on the device, or None.
        dtype: of inputs and outputs.
        device: where to keep it.
        uses_kernel: for few tokens; None where Triton is installed and the device is a GPU.
    """

    def __init__(
        self,
        weight: Int4Weight,
        bias: Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
        uses_kernel: bool | None = None,
    ) -> None:
        super().__init__()
        self.bias, self.dtype, self.group_size = bias, dtype, weight.group_size
        levels_NK = torch.from_numpy(weight.values_KN.T - INT4_RANGE[0]).to(device, torch.uint8)
        self.pairs_NK = (levels_NK[:, ::2] | levels_NK[:, 1::2] << 4).contiguous()  # (N, K / 2)
        self.scale_NG = torch.from_numpy(weight.scale_GN.T.copy()).to(device, torch.float16)
        if uses_kernel is None:
            uses_kernel = device.type == "cuda" and find_spec("triton") is not None
        is_power = self.group_size & (self.group_size - 1) == 0
        self.uses_kernel = uses_kernel and is_power and self.group_size >= LEAST_GROUP

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., T, N)."""
        x_TK = x.reshape(-1, x.shape[-1])
        y_TN = self._few(x_TK) if self.uses_kernel and len(x_TK) <= FEW_TOKENS else x_TK @ self.dequantized().T
        y = y_TN.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias

    def _few(self, x_TK: Tensor) -> Tensor:
        from nvila_ros.runtime.cuda.int4_kernel import int4_product  # Triton is not everywhere

        return int4_product(x_TK.contiguous(), self.pairs_NK, self.scale_NG)

    def dequantized(self) -> Tensor:
        """Return the weight that the values stand for, (N, K)."""
        levels_NK = torch.stack([self.pairs_NK & 0xF, self.pairs_NK >> 4], -1).flatten(1)
        values_NGK = (levels_NK.to(self.dtype) + INT4_RANGE[0]).unflatten(1, (-1, self.group_size))
        return (values_NGK * self.scale_NG.to(self.dtype)[..., None]).flatten(1)


class DeviceInt8Linear(nn.Module):
    """W8A8: y = round(x / s) W s_N s + b, with the input's scale of the weight or one for each token.

    Args:
        weight: of the map.
        bias: (N,) on the device, or None.
        device: where to keep it.
    """

    def __init__(self, weight: Int8Weight, bias: Tensor | None, device: torch.device) -> None:
        super().__init__()
        self.bias, self.input_scale = bias, weight.input_scale
        self.values_NK = torch.from_numpy(weight.values_KN.T.copy()).to(device)
        self.scale_N = torch.from_numpy(weight.scale_N).to(device)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., T, N) in the input's dtype."""
        x_TK = x.reshape(-1, x.shape[-1]).float()
        scale = token_scales(x_TK) if self.input_scale is None else self.input_scale
        rounded_TK = round_activations(x_TK, scale).to(torch.int8)
        padded = functional.pad(rounded_TK, (0, 0, 0, max(0, LEAST_ROWS - len(x_TK))))
        sums_TN = torch._int_mm(padded, self.values_NK.T)[: len(x_TK)]
        y_TN = sums_TN.float() * (scale * self.scale_N)
        if self.bias is not None:
            y_TN = y_TN + self.bias
        return y_TN.to(x.dtype).view(*x.shape[:-1], -1)
