"""Quantized weights of one linear map, in the form that all rooms exchange.

A linear map y = x W + b is stored inputs first, as graphs take it: W is (K, N), of K inputs and N outputs. Values are
int8 arrays, also four-bit values, which are packed only when they are written to a file.

Shapes: K inputs, N outputs, G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nvila_ros.errors import CheckpointError, ShapeError

INT4_RANGE = (-8, 7)
INT8_RANGE = (-127, 127)  # symmetric: -128 would have no counterpart


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """W4A16: symmetric four-bit values with a scale for each output and each group of consecutive inputs.

    Attributes:
        values_KN: int8 in [-8, 7].
        scale_GN: float32, positive; K must be G times the group size.
    """

    values_KN: np.ndarray
    scale_GN: np.ndarray

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return len(self.values_KN) // len(self.scale_GN)

    def dequantize(self) -> np.ndarray:
        """Return the weight that the values stand for, (K, N) float32."""
        return self.values_KN.astype(np.float32) * np.repeat(self.scale_GN, self.group_size, axis=0)


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """W8A8: symmetric eight-bit values with a scale for each output, and how the input is quantized.

    Attributes:
        values_KN: int8 in [-127, 127].
        scale_N: float32, positive.
        input_scale: scale of the input as a whole, found by calibration; None quantizes each token by its own maximum
            when it runs.
    """

    values_KN: np.ndarray
    scale_N: np.ndarray
    input_scale: float | None

    def dequantize(self) -> np.ndarray:
        """Return the weight that the values stand for, (K, N) float32."""
        return self.values_KN.astype(np.float32) * self.scale_N


Weight = np.ndarray | Int4Weight | Int8Weight
"""A weight: an array as in the checkpoint, (N, K) for a linear map, or its quantized form."""
Weights = Mapping[str, Weight]
"""Tensors by `part.key`; they may be read only when asked for, so each is asked for once."""
NamedWeights = Iterable[tuple[str, Weight]]
"""The same one by one."""


def join_outputs(weights: Sequence[Weight]) -> Weight | None:
    """Return linear maps of the same input joined along their outputs, or None where their kinds differ."""
    floats = [weight for weight in weights if isinstance(weight, np.ndarray)]
    int4s = [weight for weight in weights if isinstance(weight, Int4Weight)]
    int8s = [weight for weight in weights if isinstance(weight, Int8Weight)]
    if len(floats) == len(weights):
        return np.concatenate(floats)
    if len(int4s) == len(weights) and len({weight.group_size for weight in int4s}) == 1:
        values_KN = np.concatenate([weight.values_KN for weight in int4s], 1)
        return Int4Weight(values_KN, np.concatenate([weight.scale_GN for weight in int4s], 1))
    if len(int8s) == len(weights) and len({weight.input_scale for weight in int8s}) == 1:
        values_KN = np.concatenate([weight.values_KN for weight in int8s], 1)
        return Int8Weight(values_KN, np.concatenate([weight.scale_N for weight in int8s]), int8s[0].input_scale)
    return None


def as_array(weights: Mapping[str, Weight], key: str) -> np.ndarray:
    """Return a tensor that is never quantized, in its stored dtype.

    Raises:
        CheckpointError: it is quantized.
    """
    array = weights[key]
    if not isinstance(array, np.ndarray):
        raise CheckpointError(f"only linear maps may be quantized, {key} is {_name(array)}; build the engine again")
    return array


def name_precision(weights: Mapping[str, Weight]) -> str:
    """Return the precisions of tower and language model, such as `w8a8+w4a16`, or `fp32` where both are the same.

    Each is that of its first linear map; bfloat16 is computed in float32.
    """
    probes = ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", "llm.model.layers.0.mlp.up_proj.weight")
    names = [_name(weights[key]) for key in probes if key in weights]
    return "+".join(dict.fromkeys(names))


def _name(weight: Weight) -> str:
    if isinstance(weight, np.ndarray):
        return "fp16" if weight.dtype == np.float16 else "fp32"
    return "w4a16" if isinstance(weight, Int4Weight) else "w8a8"


def pack_nibbles(values_KN: np.ndarray) -> np.ndarray:
    """Return int4 values two to a byte, the first in the low half, (K, N / 2) uint8, as ONNX packs them.

    Raises:
        ShapeError: N is odd.
    """
    if values_KN.shape[1] % 2:
        raise ShapeError(f"int4 values are packed in pairs, got {values_KN.shape[1]} outputs; leave it unquantized")
    nibbles = values_KN.astype(np.uint8) & 0xF
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """Return int8 values in [-8, 7], (K, N), of (K, N / 2) bytes."""
    pairs = np.stack([packed & 0xF, packed >> 4], axis=-1).astype(np.int8)
    return np.where(pairs > 7, pairs - 16, pairs).astype(np.int8).reshape(len(packed), -1)
