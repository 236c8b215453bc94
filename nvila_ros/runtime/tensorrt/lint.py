"""Check in the builder's list of kernels that a plan was compiled as its graph intends.

A plan whose numbers are right can still be slow: weights dequantized ahead of their GEMM, attention in several kernels,
keys repeated for every query head. With `ProfilingVerbosity.DETAILED` and a verbose logger the builder
describes each kernel, types and shapes included, in one line; no GPU is needed to read them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import prod

from nvila_ros.export.forms import GraphForm
from nvila_ros.models.shapes import HEAD
from nvila_ros.models.spec import ModelSpec

_KERNEL = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: .*?Metadata:(?P<layers>.*)"
)
_TENSOR = re.compile(r"\{ Name: (.*?)(?: \[profile \d+\])?, Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")
_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*?)(?: \[profile \d+\])?\]")
_GRAPH = re.compile(r"_myl(\d+)_\d+$")
_TOWER_PROBE = "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight"
_DECODER_PROBE = "llm.model.layers.0.mlp.up_proj.weight"
FLOATS = ("Half", "Float", "BFloat16")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a kernel; a variable dimension is -1, the dtype is TensorRT's, such as Half."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of a plan.

    Attributes:
        profile: number of the optimization profile that it belongs to.
        layers: names of the graph's nodes that went into it.
    """

    name: str
    kind: str
    profile: int
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[str, ...]

    @property
    def is_attention(self) -> bool:
        """Whether it is a fused attention."""
        return "_mha" in self.name

    @property
    def matrices(self) -> tuple[Tensor, ...]:
        """Constants that are weights of a linear map: two dimensions, neither of them one."""
        return tuple(c for c in self.constants if len(c.shape) == 2 and min(c.shape) > 1)

    @property
    def unpacks(self) -> bool:
        """Whether it writes a four-bit weight in a wider type, for a GEMM to read."""
        sizes = {prod(c.shape) for c in self.constants if c.dtype == "Int4"}
        return any(out.dtype in FLOATS and prod(out.shape) in sizes for out in self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Counts of kernels and tensors in one profile of a plan.

    Attributes:
        int8_gemms: GEMMs that read eight-bit activations and weights.
        int4_gemms: kernels that read four-bit weights and unpack them as they multiply.
        float_gemms: kernels that multiply with weights that are not quantized.
        unpacked_int4: kernels that write a four-bit weight out before its GEMM reads it.
        attentions: fused attentions.
        expanded_kv: keys and values that a fused attention reads once for every query head.
        copied_kv: keys and values that a fused attention reads from a copy of the cache.
    """

    int8_gemms: int
    int4_gemms: int
    float_gemms: int
    unpacked_int4: int
    attentions: int
    expanded_kv: int
    copied_kv: int


def read_kernels(lines: Iterable[str]) -> list[Kernel]:
    """Return the kernels that a log describes; other lines are ignored."""
    kernels = []
    for line in lines:
        found = _KERNEL.match(line)
        if not found:
            continue
        graph = _GRAPH.search(found["name"])
        inputs, constants, outputs = (_tensors(found[key]) for key in ("inputs", "constants", "outputs"))
        layers = tuple(_LAYER.findall(found["layers"]))
        profile = int(graph[1]) if graph else 0
        kernels.append(Kernel(found["name"], found["kind"], profile, inputs, constants, outputs, layers))
    return kernels


def find(kernels: Iterable[Kernel], profile: int = 0, num_kv_heads: int = 0, head_size: int = 0) -> Findings:
    """Count in one profile; keys and values are recognized by the head size, if it is given."""
    own = [kernel for kernel in kernels if kernel.profile == profile]
    linear = [kernel for kernel in own if kernel.matrices and any("MatMul" in layer for layer in kernel.layers)]
    attentions = [kernel for kernel in own if kernel.is_attention]
    kv = [tensor for kernel in attentions for tensor in _keys_and_values(kernel, head_size)]
    return Findings(
        int8_gemms=sum(_reads(kernel, "Int8") and kernel.inputs[0].dtype == "Int8" for kernel in linear),
        int4_gemms=sum(_reads(kernel, "Int4") and not kernel.unpacks for kernel in linear),
        float_gemms=sum(not _reads(kernel, "Int8", "Int4") for kernel in linear),
        unpacked_int4=sum(kernel.unpacks for kernel in own),
        attentions=len(attentions),
        expanded_kv=sum(prod(tensor.shape[:-2]) > num_kv_heads for tensor in kv),
        copied_kv=sum(not tensor.name.startswith(("past_", "present_")) for tensor in kv),
    )


def find_kernel_faults(
    part: str, spec: ModelSpec, tensors: Collection[str], lines: Sequence[str], form: GraphForm
) -> list[str]:
    """Return in what a plan's kernels differ from those that its graph intends, as sentences.

    Args:
        part: name of the part.
        spec: of the model.
        tensors: names in the build's files, from which follows what is quantized.
        lines: the builder's description of its kernels.
        form: of the decoder's graph.
    """
    kernels = read_kernels(lines)
    if not kernels:
        return [
            f"none of the builder's {len(lines)} lines describes a kernel in a known format; kernels were not checked"
        ]
    if part == "vision":
        is_quantized = f"{_TOWER_PROBE}.values" in tensors
        return _profile_faults("", find(kernels), spec.vision.num_live_layers, 0 if is_quantized else None)
    if part == "decoder":
        is_quantized, is_head = (f"{key}.values" in tensors for key in (_DECODER_PROBE, HEAD))
        floats = None if not is_quantized else int(not is_head)
        texts = []
        for profile, name in enumerate(("prefill: ", "decode: ")):
            found = find(kernels, profile, spec.decoder.num_kv_heads, spec.decoder.head_size)
            texts += _profile_faults(name, found, spec.decoder.num_layers, floats)
            # For prompts over a cache in place, every known version of TensorRT repeats the keys.
            if profile or form.decoder == "append":
                texts += _cache_faults(name, found, form)
        return texts
    return []


def _profile_faults(profile: str, found: Findings, num_layers: int, num_floats: int | None) -> list[str]:
    """Check one profile; `num_floats` products are not quantized, None if all are not."""
    texts = []
    if found.attentions != num_layers:
        texts.append(f"{profile}attention is fused in {found.attentions} of {num_layers} layers")
    if num_floats is not None and found.float_gemms > num_floats:
        texts.append(f"{profile}{found.float_gemms} products are not quantized, {num_floats} intended")
    if found.unpacked_int4:
        texts.append(
            f"{profile}{found.unpacked_int4} four-bit weights are unpacked to memory before they are multiplied"
        )
    return texts


def _cache_faults(profile: str, found: Findings, form: GraphForm) -> list[str]:
    texts = []
    if found.expanded_kv:
        texts.append(f"{profile}{found.expanded_kv} keys and values are repeated for each query head")
    if found.copied_kv and form.decoder == "in_place":
        texts.append(f"{profile}{found.copied_kv} keys and values are read from a copy of the cache")
    return texts


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(name, tuple(int(size) for size in dims.split(",") if size), dtype)
        for name, dims, dtype in _TENSOR.findall(text)
    )


def _reads(kernel: Kernel, *dtypes: str) -> bool:
    return any(matrix.dtype in dtypes for matrix in kernel.matrices)


def _keys_and_values(kernel: Kernel, head_size: int) -> list[Tensor]:
    """Return the inputs of an attention except its queries, and its masks, which have no head size.

    The kernels for one token list the queries last, those for many list them first.
    """
    heads = [t for t in kernel.inputs if t.dtype in FLOATS and len(t.shape) > 2 and head_size in t.shape[-2:]]
    return heads[:2] if "gemv" in kernel.name else heads[1:]
