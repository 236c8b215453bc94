"""Check the tensors of a build against its spec: which there are, their shapes, and their dtypes.

Engines index by the sizes of the spec and trust them, native code included, so a build whose tensors differ is refused
when it is opened.

Shapes: K inputs, N outputs, G groups of inputs, V vocabulary, D decoder width.
"""

from __future__ import annotations

from collections.abc import Mapping

from nvila_ros.models.checkpoint import TensorInfo
from nvila_ros.models.shapes import EMBEDDING, HEAD, expected_shapes
from nvila_ros.models.spec import ModelSpec

PLAIN_DTYPES = ("F16", "F32")
SCALE_DTYPES = ("F32",)
BITS_BY_DTYPE = {"U8": 4, "I8": 8}
TABLES = (EMBEDDING, "vision_tower.vision_model.embeddings.position_embedding.weight")
"""Matrices whose rows are looked up; they are never quantized."""


def find_build_faults(spec: ModelSpec, tensors: Mapping[str, TensorInfo]) -> list[str]:
    """Return what keeps stored tensors from being this model's weights, each fault a sentence."""
    wanted = expected_shapes(spec)
    if {HEAD, f"{HEAD}.values"} & tensors.keys():  # a tied head that was quantized is a tensor of its own
        wanted[HEAD] = (spec.decoder.vocab_size, spec.decoder.width)
    faults = (_fault(key, shape, tensors) for key, shape in wanted.items())
    return [fault for fault in faults if fault]


def _fault(key: str, shape: tuple[int, ...], tensors: Mapping[str, TensorInfo]) -> str:
    """Return what is wrong with a weight whose shape in the checkpoint's layout is `shape`; empty if nothing is."""
    if key in tensors:
        return _differs(key, tensors, shape, PLAIN_DTYPES)
    if f"{key}.values" not in tensors or f"{key}.scale" not in tensors:
        return f"{key} is missing"
    if len(shape) != 2 or key in TABLES:
        return f"{key} is quantized, which only linear maps may be"
    return _quantized_fault(key, shape, tensors)


def _quantized_fault(key: str, shape: tuple[int, ...], tensors: Mapping[str, TensorInfo]) -> str:
    num_outputs, num_inputs = shape
    bits = BITS_BY_DTYPE.get(tensors[f"{key}.values"].dtype)
    if bits == 8:
        faults = [
            _differs(f"{key}.values", tensors, (num_inputs, num_outputs), ("I8",)),
            _differs(f"{key}.scale", tensors, (num_outputs,), SCALE_DTYPES),
        ]
        if f"{key}.input_scale" in tensors:
            faults.append(_differs(f"{key}.input_scale", tensors, (1,), SCALE_DTYPES))
        return next(filter(None, faults), "")
    if num_outputs % 2:
        return f"{key} has {num_outputs} outputs, but four-bit values are packed in pairs"
    num_groups = (tensors[f"{key}.scale"].shape or (0,))[0]
    if not num_groups or num_inputs % num_groups:
        return f"{key}.scale must have groups that divide the {num_inputs} inputs, got {num_groups}"
    faults = [
        _differs(f"{key}.values", tensors, (num_inputs, num_outputs // 2), ("U8",)),
        _differs(f"{key}.scale", tensors, (num_groups, num_outputs), SCALE_DTYPES),
    ]
    return next(filter(None, faults), "")


def _differs(name: str, tensors: Mapping[str, TensorInfo], shape: tuple[int, ...], dtypes: tuple[str, ...]) -> str:
    info = tensors[name]
    if info.dtype not in dtypes:
        return f"{name} must be of {' or '.join(dtypes)}, got {info.dtype}"
    return "" if info.shape == shape else f"{name} must be {shape} by the manifest's spec, got {info.shape}"
