"""The forms of a part's graph: all compute the same, each is fastest on some runtimes."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nvila_ros.errors import ConfigError

DTYPES = ("float32", "float16")
"""Dtypes of activations and of weights that are not quantized."""
DECODERS = ("append", "in_place", "overlap")
"""How the decoder keeps keys and values: it returns the new rows, writes them into the cache that it reads, or writes
them to memory that it also reads as part of the cache; only ONNX Runtime supports the last."""
MAPS = ("standard", "fused")
"""Operators of a quantized map: ONNX's own, or one that only ONNX Runtime has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphForm:
    """The form of a part's graph: all compute the same, each is fastest on some runtimes.

    Attributes:
        dtype: one of `DTYPES`; TensorRT's own types follow the graph's, ONNX Runtime's kernels for a CPU want float32.
        decoder: one of `DECODERS`.
        maps: one of `MAPS`; a fused map rounds its inputs to eight bits, by the largest of each group. Weights in
            other group sizes stay standard, and so do those with an input scale.
    """

    dtype: str = "float32"
    decoder: str = "append"
    maps: str = "standard"

    def __post_init__(self) -> None:
        """Check every choice."""
        if self.decoder == "overlap" and self.dtype != "float32":
            raise ConfigError(f"a graph whose rows overlap is computed in float32, not in {self.dtype}")
        for name, known in (("dtype", DTYPES), ("decoder", DECODERS), ("maps", MAPS)):
            if (value := getattr(self, name)) not in known:
                raise ConfigError(f"unknown {name} of a graph {value!r}; known are {list(known)}")

    @property
    def opset(self) -> int:
        """The lowest opset with every operator: blocked four-bit weights came with 21, a cache in place with 24."""
        return 24 if self.decoder == "in_place" else 21

    @property
    def is_for_ort(self) -> bool:
        """Whether it is for ONNX Runtime on a CPU."""
        return self.dtype == "float32" and self.decoder != "in_place"

    @property
    def has_fused_operators(self) -> bool:
        """Whether it has operators that only ONNX Runtime has."""
        return self.maps == "fused" or self.decoder == "overlap"

    def of(self, part: str) -> GraphForm:
        """Return the form of one part: only the decoder has a choice of caches."""
        return self if part == "decoder" else replace(self, decoder=DECODERS[0])

    def file_of(self, part: str) -> str:
        """Return the file name of a part's graph; default values are left out."""
        form = self.of(part)
        usual = (DTYPES[0], DECODERS[0], MAPS[0])
        words = [part, *(word for word in (form.dtype, form.decoder, form.maps) if word not in usual), "onnx"]
        return ".".join(words)


ORT = GraphForm()
"""For ONNX Runtime on a CPU, or any other that reads ONNX."""
ORT_FUSED = GraphForm(decoder="overlap", maps="fused")
"""For ONNX Runtime alone."""
TRT_BASE = GraphForm(dtype="float16")
"""For any TensorRT from 10.1 on."""
TRT_KV = GraphForm(dtype="float16", decoder="in_place")
"""For TensorRT from 10.15 on, whose attention reads a cache of fixed size in place."""
